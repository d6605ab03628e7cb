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
