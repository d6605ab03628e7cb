"""Chains that are made ill get the verdict that is true of them; curves that copy the loss are found out."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import llcjax
from llcjax.checkpoints import CheckpointBank, bank_of
from llcjax.config import SweepConfig
from llcjax.verdicts import loss_copy
from tests.test_estimators import made_sweep, noise

X = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
Y = X @ np.array([1.0, -1.0, 2.0, 0.5], np.float32) + 0.1 * np.random.default_rng(1).normal(size=256).astype(np.float32)
BEST = np.linalg.lstsq(X, Y, rcond=None)[0].astype(np.float32)
CHANCE = float(np.mean(Y**2))


def loss(w, batch):
    return jnp.square(batch[0] @ w - batch[1])


def verdict(params, *, chance=CHANCE, **settings):
    base = dict(n_beta=100.0, localization=10.0, step_size=1e-3, num_draws=300, num_burnin_steps=100, batch_size=64)
    return llcjax.estimate_llc(loss, params, (X, Y), key=0, chance=chance, **{**base, **settings}).verdict


def test_a_healthy_chain_is_ok():
    assert verdict(BEST).name == "ok"


def test_a_chain_made_to_diverge():
    found = verdict(BEST, step_size=0.05)
    assert found.name in ("diverged", "failed") and "lower step_size=0.05" in found.sentence


def test_a_stuck_chain():
    found = verdict(BEST, step_size=1e-12)
    assert found.name == "stuck" and "raise step_size=1e-12" in found.sentence


def test_a_checkpoint_that_is_no_minimum():
    found = verdict(BEST + 0.5, localization=200.0, n_beta=20.0)
    assert found.name == "not_minimum" and "lower n_beta or raise localization" in found.sentence


def test_chains_that_forget_the_model():
    found = verdict(BEST, n_beta=0.05, localization=0.05, step_size=0.5, num_draws=600)
    assert found.name == "left_basin" and "forgotten the model" in found.sentence


def test_without_chance_the_control_of_the_prior_tells(one_device):
    config = SweepConfig(
        n_beta=1e-4, localization=0.5, step_size=0.05, num_chains=8, num_draws=2000, num_burnin_steps=500,
        batch_size=64, num_control_draws=64,
    )  # fmt: skip
    facts = llcjax.sweep(loss, bank_of(BEST), (X, Y), config, devices=one_device)
    # E[L] over N(w*, 1/localization): L(w*) + trace of the second moments over localization = about 8.
    assert float(facts["prior_loss"][0, 0]) == pytest.approx(float(np.sum(np.mean(X**2, 0))) / 0.5, rel=0.5)
    table = llcjax.estimates(facts)
    local = SweepConfig(
        n_beta=100.0, localization=0.5, step_size=1e-3, num_draws=300, num_burnin_steps=100, batch_size=64,
        num_control_draws=64,
    )  # fmt: skip
    kept = llcjax.estimates(llcjax.sweep(loss, bank_of(BEST), (X, Y), local, devices=one_device))
    assert kept["verdict"].item() == "ok" and kept["mean_loss"].item() < 0.1 * kept["prior_loss"].item()
    assert table["mean_loss"].item() > 0.8 * table["prior_loss"].item()


def test_an_all_nan_checkpoint_fails_and_harms_no_other(one_device):
    config = SweepConfig(
        n_beta=100.0, localization=0.5, step_size=1e-3, num_draws=300, num_burnin_steps=100, batch_size=64
    )
    bank = CheckpointBank(params=np.stack([BEST, BEST * np.nan]), steps=np.array([3, 8]))
    table = llcjax.estimates(llcjax.sweep(loss, bank, (X, Y), config, devices=one_device))
    alone = llcjax.estimates(llcjax.sweep(loss, bank[[0]], (X, Y), config, devices=one_device))
    assert table["verdict"].values[:, 0].tolist() == ["ok", "failed"]
    assert "checkpoint itself is not finite" in table["sentence"].values[1, 0]
    assert table["llc"].values[0, 0] == pytest.approx(alone["llc"].item(), rel=1e-5)


def test_a_bank_of_nothing_but_nan_is_refused():
    with pytest.raises(ValueError, match="step 8 contain NaN"):
        llcjax.sweep(loss, bank_of(BEST * np.nan, step=8), (X, Y), SweepConfig(batch_size=64))


def curve(steps, losses, sampled, n_beta=66.67):
    losses, sampled = np.asarray(losses, float), np.asarray(sampled, float)
    return xr.Dataset(
        {
            "llc": ("checkpoint", n_beta * (sampled - losses)),
            "mean_loss": ("checkpoint", sampled),
            "init_loss": ("checkpoint", losses),
        },
        coords={"checkpoint": steps, "n_beta": n_beta},
    )


def test_a_curve_that_copies_the_loss_is_found_out():
    steps, losses = np.arange(20) * 10, np.linspace(4.3, 1.8, 20)
    rng = np.random.default_rng(0)
    found = loss_copy(curve(steps, losses, 4.43 + 0.005 * rng.normal(size=20)))
    assert (found.start, found.end) == (0, 190)
    assert found.slope == pytest.approx(-66.67, rel=0.02) and found.correlation < -0.999
    assert "no information beyond the loss" in found.sentence
    assert loss_copy(curve(steps, losses, losses + 0.2)) is None
    half = np.where(np.arange(20) < 10, 4.43, losses + 0.1)
    assert loss_copy(curve(steps, losses, half)).end == 90
    assert loss_copy(curve(steps[:4], losses[:4], np.full(4, 4.43))) is None


def test_the_papers_published_curve_is_found_out(shared_data):
    table = np.genfromtxt(shared_data / "paper_regression_seed0.csv", delimiter=",", names=True)
    found = loss_copy(curve(table["step"].astype(int), table["test_mse"], table["sgld_mean_loss"]))
    assert found.start == 0 and 35_000 < found.end < 80_000
    assert found.slope == pytest.approx(-66.67, rel=0.01) and found.correlation < -0.999


def test_checkpoints_at_chance_share_the_verdict_of_those_whose_draws_they_have():
    """L(w*) is 4.3 (above chance), 3.0 and 1.9, and every chain sees 4.43: none of them knows its checkpoint."""
    parts = []
    for step, base, sampled in ((0, 4.3, 4.43), (10, 3.0, 4.43), (20, 1.9, 4.43), (30, 4.3, 4.35)):
        part = made_sweep(noise(mean=sampled - base, sd=0.02), base=base, n_beta=66.67, chance=4.125)
        parts.append(part.assign_coords(checkpoint=[step]))
    table = llcjax.estimates(xr.concat(parts, "checkpoint", data_vars="minimal", coords="minimal", compat="override"))
    assert table["verdict"].values[:, 0].tolist() == ["left_basin", "left_basin", "left_basin", "ok"]
    assert "whatever the checkpoint" in table["sentence"].values[0, 0]
    assert "nothing tells whether they stayed local" in table["sentence"].values[3, 0]
