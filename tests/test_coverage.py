"""Intervals that cover what they say: replicated estimates against the discretised closed form.

The replicates are copies of one checkpoint at different training steps: with `common="none"` the step enters the
keys, so their batches and noise are independent.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llcjax
from llcjax import reference
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig

CURVATURE = np.array([0.02, 0.3, 1.0])


def quadratic(w, _):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * w**2)


def replicates(count, num_chains, num_draws):
    bank = CheckpointBank(params=np.zeros((count, 3), np.float32), steps=np.arange(count))
    config = SweepConfig(
        n_beta=200.0, localization=2.0, step_size=4e-3, num_chains=num_chains, num_draws=num_draws,
        num_burnin_steps=800, batch_size=None, common="none", draws_per_chunk=500, runs_per_launch=2048,
    )  # fmt: skip
    result = llcjax.sweep(quadratic, bank, None, config, devices=jax.local_devices()[:1])
    return llcjax.estimates(result).isel(setting=0)


def check(table, low, high):
    exact = reference.quadratic_llc(CURVATURE, n_beta=200.0, localization=2.0, step_size=4e-3)
    covered = ((table["llc_lower"] <= exact) & (exact <= table["llc_upper"])).values.mean()
    assert low <= covered <= high, covered
    z = (table["llc"].values.mean() - exact) / (table["llc"].values.std(ddof=1) / np.sqrt(table.sizes["checkpoint"]))
    assert abs(z) < 4, z
    # The root mean square of the standard errors is the standard deviation of the estimates.
    ratio = np.sqrt(np.mean(table["llc_stderr"].values ** 2)) / table["llc"].values.std(ddof=1)
    assert 0.9 < ratio < 1.1, ratio


def test_95_percent_intervals_cover_over_400_replicates():
    """Monte-Carlo error of the coverage: 1.1%."""
    check(replicates(400, num_chains=4, num_draws=400), 0.92, 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("num_chains", [2, 4, 10])
def test_intervals_cover_over_2000_replicates(num_chains):
    """Monte-Carlo error of the coverage: 0.5%."""
    check(replicates(2000, num_chains, num_draws=1000), 0.935, 0.965)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [32, 128])
def test_standard_errors_between_chains_are_not_too_small_on_minibatches(batch_size):
    """Sharing minibatches between chains makes them 1.4 to 1.7 times too small; here each chain draws its own.

    A regression of n = 1000 examples in 20 dimensions, 400 replicates of 4 chains; the ratio of the true spread of the
    estimates to the stated error has a Monte-Carlo error of 4%.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 20)).astype(np.float32)
    y = (x @ rng.normal(size=20) + rng.normal(size=1000)).astype(np.float32)
    best = np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float32)
    bank = CheckpointBank(params=np.repeat(best[None], 400, 0), steps=np.arange(400))
    config = SweepConfig(
        n_beta=1000 / np.log(1000), localization=1.0, step_size=5e-4, num_chains=4, num_draws=300,
        num_burnin_steps=200, batch_size=batch_size, baseline="dataset", common="none", runs_per_launch=400,
    )  # fmt: skip
    facts = llcjax.sweep(lambda w, b: jnp.square(b[0] @ w - b[1]), bank, (x, y), config)
    table = llcjax.estimates(facts).isel(setting=0)
    stated = np.sqrt(np.mean(table["llc_stderr"].values ** 2))
    ratio = table["llc"].values.std(ddof=1) / stated
    assert 0.9 < ratio < 1.1, ratio


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_oracle_intervals_cover_the_exact_expectation(name):
    """MALA and HMC against quadrature, on a quartic: 400 replicates, Monte-Carlo error of the coverage 1.1%."""
    bank = CheckpointBank(params=np.zeros((400, 1), np.float32), steps=np.arange(400))
    # Small leapfrog steps: larger ones are unstable in the stiff tails, where the chain then sticks.
    step_size, options = (4e-3, {"num_leapfrog_steps": 8}) if name == "hmc" else (0.05, {})
    config = SweepConfig(
        sampler=name, sampler_options=options, n_beta=30.0, localization=0.5, step_size=step_size, num_chains=4,
        num_draws=300, num_burnin_steps=200, batch_size=None, common="none", draws_per_chunk=250,
        runs_per_launch=2048,
    )  # fmt: skip
    facts = llcjax.sweep(lambda w, _: jnp.sum(w**4 + 0.5 * w**3 + 0.1 * w**2), bank, None, config)
    table = llcjax.estimates(facts).isel(setting=0)
    grid = np.linspace(-4, 4, 400_001)
    values = grid**4 + 0.5 * grid**3 + 0.1 * grid**2
    density = np.exp(-30 * values - 0.25 * grid**2)
    exact = 30 * np.sum(values * density) / np.sum(density)
    covered = ((table["llc_lower"] <= exact) & (exact <= table["llc_upper"])).values.mean()
    assert 0.92 <= covered <= 0.98, covered
    z = (table["llc"].values.mean() - exact) / (table["llc"].values.std(ddof=1) / 20)
    assert abs(z) < 4, z
