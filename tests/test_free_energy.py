"""Free energies and temperatures against the closed forms of a quadratic."""

import jax.numpy as jnp
import numpy as np
import pytest

from llcjax import SweepConfig, free_energy, integration_rule, sweep, temperature_curve, wbic
from llcjax.checkpoints import bank_of

H = np.array([1.0, 4.0, 9.0, 0.01])
GAMMA = 20.0


def quadratic(w, _):
    return 3.0 + 0.5 * jnp.sum(H * w**2)


@pytest.fixture(scope="module")
def tempered():
    rule = integration_rule(1000.0, 8)
    config = SweepConfig(
        sampler="hmc", n_beta=rule.n_beta, localization=GAMMA, step_size=2e-4, batch_size=None, num_chains=16,
        num_draws=400, num_burnin_steps=60,
    )  # fmt: skip
    return rule, sweep(quadratic, bank_of(np.zeros(4, np.float32)), None, config)


def test_free_energy_of_a_quadratic(tempered):
    rule, facts = tempered
    found = free_energy(facts, rule).isel(checkpoint=0, setting=0)
    truth = 0.5 * np.log(1 + 1000 * H / GAMMA).sum()
    by_rule = sum(w * (0.5 * H / (t * H + GAMMA)).sum() for t, w in zip(*rule, strict=True))
    assert abs(by_rule - truth) < 0.003 * truth  # the quadrature's own error
    value, error = float(found["free_energy"]), float(found["free_energy_stderr"])
    assert abs(value - truth) < 4 * error + 0.003 * truth and error < 0.03 * truth
    with pytest.raises(ValueError, match="has no n_beta="):
        free_energy(facts, integration_rule(900.0, 8))
    with pytest.raises(ValueError, match="num_nodes=1 must be a whole number of at least 2"):
        integration_rule(900.0, 1)


def test_llc_against_n_beta(tempered):
    curve = temperature_curve(tempered[1]).isel(checkpoint=0)
    n_beta = curve["n_beta"].values
    truth = (0.5 * n_beta[:, None] * H / (n_beta[:, None] * H + GAMMA)).sum(1)
    assert np.all(np.diff(n_beta) > 0)
    assert np.all(np.abs(curve["llc"] - truth) < 4 * curve["llc_stderr"])
    # Free where the localisation rules, flat where the loss does.
    assert curve["slope"].values[1] > 0.9 and abs(curve["slope"].values[-1]) < 0.3
    with pytest.raises(ValueError, match="two values"):
        temperature_curve(tempered[1].isel(setting=[0]))


def test_wbic_of_a_gaussian_model():
    """n E[L] at n_beta = n / ln n of y ~ N(w, 1): n L(w*) + n / 2 / (n_beta + localization), close to Schwarz."""
    y = np.random.default_rng(0).normal(size=400).astype(np.float32)
    n = len(y)
    config = SweepConfig(
        sampler="hmc", n_beta=n / np.log(n), localization=0.01, step_size=8e-4, batch_size=None, num_chains=8,
        num_draws=400, num_burnin_steps=20, baseline="dataset",
    )  # fmt: skip

    def nll(w, batch):
        return 0.5 * (batch - w) ** 2 + 0.5 * np.log(2 * np.pi)

    facts = sweep(nll, bank_of(np.float32(y.mean())), y, config)
    n_beta = config.n_beta[0]
    truth = n * (0.5 * y.var() + 0.5 * np.log(2 * np.pi)) + n / 2 / (n_beta + 0.01)
    assert abs(truth - n * nll(y.mean(), y).mean() - np.log(n) / 2) < 0.01  # Schwarz's penalty, d/2 ln n
    spread = n * facts["loss"].mean("draw").std("chain", ddof=1) / np.sqrt(8)
    assert abs(wbic(facts, log_likelihood=True).item() - truth) < 4 * spread.item()
