"""The step-size warm-up: on a Gaussian whose MALA acceptance is known, and through a calibration."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from llcjax.calibrate import calibrate
from llcjax.calibrate.looks import Subject
from llcjax.calibrate.warmup import step_at, warm_up
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.sensitivity import neighbors

SIZE = 20
# Curvature 1 around 0 (step 10), 4 around 10 (step 20): the second checkpoint is the hardest.
BANK = CheckpointBank(params=np.repeat([[0.0], [10.0]], SIZE, 1).astype(np.float32), steps=np.array([10, 20]))
GRID = SweepConfig(
    n_beta=50.0, localization=(10.0, 200.0), step_size=(1e-3, 4e-3), num_chains=4, num_draws=600,
    num_burnin_steps=200, batch_size=None, draws_per_chunk=200,
)  # fmt: skip
TARGET = 0.95


def two_basins(w, _):
    far = w > 5
    return 0.5 * jnp.sum(jnp.where(far, 4.0, 1.0) * (w - jnp.where(far, 10.0, 0.0)) ** 2)


def exact_acceptance(precision, step, draws=100_000):
    """Mean MALA acceptance of SGLD's moves on N(0, 1/precision) in SIZE dimensions, in the chain's own law."""
    rng = np.random.default_rng(0)
    spread = 1 / np.sqrt(precision * (1 - step * precision / 4))
    here = spread * rng.normal(size=(draws, SIZE))
    there = (1 - step * precision / 2) * here + np.sqrt(step) * rng.normal(size=here.shape)

    def noise(to, origin):
        return np.sum((to - origin + step / 2 * precision * origin) ** 2, 1) / (2 * step)

    energy = precision / 2 * (np.sum(here**2, 1) - np.sum(there**2, 1))
    return np.exp(np.minimum(energy + noise(there, here) - noise(here, there), 0)).mean()


@pytest.fixture(scope="module")
def found():
    subject = Subject(loss_fn=two_basins, bank=BANK, data=None, chance=None, folder=None, progress=False)
    return warm_up(subject, GRID, TARGET)


def test_the_found_step_has_the_wanted_acceptance(found):
    """40 draws of the acceptance, whose standard deviation is 0.1, at each of two grid points: error about 0.015."""
    assert [one.localization for one in found.found] == [10.0, 200.0] and all(found.bracketed)
    for one in found.found:
        precision = 50.0 * 4 + one.localization
        assert exact_acceptance(precision, one.step_size) == pytest.approx(TARGET, abs=0.03)
        assert exact_acceptance(50.0 + one.localization, one.step_size) > TARGET
    # On a Gaussian the acceptance depends on step x precision alone.
    first, second = (one.step_size * (200.0 + one.localization) for one in found.found)
    assert first == pytest.approx(second, rel=0.2)
    assert found.acceptance.min() < 0.01 and found.acceptance.max() > 0.99


def test_the_acceptance_of_every_step_is_the_exact_one(found):
    hard = found.acceptance.isel(checkpoint=1)
    for index in np.flatnonzero((hard > 0.05) & (hard < 0.995)):
        one = hard.isel(setting=index)
        exact = exact_acceptance(200.0 + float(one["localization"]), float(one["step_size"]))
        assert float(one) == pytest.approx(exact, abs=0.08)


def test_a_target_beyond_the_steps_takes_the_nearest_and_says_so():
    step, inside = step_at(np.array([1e-4, 1e-3]), np.array([0.9, 0.8]), 0.95)
    assert step == pytest.approx(1e-4) and not inside
    step, inside = step_at(np.array([1e-4, 1e-3]), np.array([0.9, 0.8]), 0.5)
    assert step == pytest.approx(1e-3) and not inside
    # A rise of the acceptance is noise; where it is 1 up to some step, nothing is gained by a smaller one.
    step, inside = step_at(np.array([1e-6, 1e-5, 1e-4, 1e-3]), np.array([1.0, 1.0, 0.5, 0.6]), 0.5)
    assert inside and step == pytest.approx(1e-3)


def test_a_calibration_to_an_acceptance():
    result = calibrate(two_basins, BANK, None, GRID, chance=20.0, target_acceptance=TARGET)
    table, warmup = result.table, result.warmup
    assert table.sizes["setting"] == 6 and result.recommended is not None, result.reasons
    assert table["step_level"].values.tolist() == [0, 1, 2] * 2
    step = result.recommended.step_size[0]
    assert step in [one.step_size for one in warmup.found]
    np.testing.assert_allclose(table["step_size"].values[:3], warmup.found[0].step_size * np.array([1 / 3, 1, 3]))
    acceptance = result.judged["acceptance"].isel(setting=result.chosen).min()
    assert float(acceptance) == pytest.approx(TARGET, abs=0.03)
    assert f"MALA would accept {TARGET:.0%} of the moves at the hardest checkpoint" in result.reasons[1]
    # Settings of one level are neighbors in localization although their step sizes differ.
    assert neighbors(table, 1, "localization") == [4] and neighbors(table, 1, "step_size") == [0, 2]


@pytest.mark.parametrize(
    ("config", "target", "words"),
    [
        (GRID, 1.0, "target_acceptance=1 must be between 0 and 1"),
        (GRID, float("nan"), "target_acceptance=nan must be between 0 and 1"),
        (dataclasses.replace(GRID, sampler="mala"), 0.9, "is for sgld, but config has mala"),
    ],
)
def test_bad_input(config, target, words):
    with pytest.raises(ValueError, match=words):
        calibrate(two_basins, BANK, None, config, target_acceptance=target)
