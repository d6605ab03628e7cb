"""Chains that are made ill get the verdict that is true of them; curves that copy the loss are found out."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import llcjax
from llcjax.checkpoints import CheckpointBank, bank_of
from llcjax.config import SweepConfig
from llcjax.curve_verdict import curve_verdict, loss_copy
from llcjax.reference import quadratic_llc
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


def judged(steps, losses, sampled, verdicts):
    return curve(steps, losses, sampled).assign(verdict=("checkpoint", np.asarray(verdicts, str)))


def test_the_verdict_on_a_whole_curve():
    steps, losses = np.arange(20) * 10, np.linspace(4.3, 1.8, 20)
    good = curve_verdict(judged(steps, losses, losses + 0.2, ["ok"] * 20))
    assert good.name == "good" and good.sentence.startswith("All 20 estimates are ok. No long stretch")
    doubtful = ["not_minimum"] * 3 + ["ok"] * 2 + ["noisy"] + ["ok"] * 13 + ["left_basin"]
    mixed = curve_verdict(judged(steps, losses, losses + 0.2, doubtful))
    assert mixed.name == "mixed" and mixed.sentence.startswith(
        "15 of 20 estimates are ok (1 noisy, 3 not minimum, 1 left basin), without a gap from step 60 to 180."
    )
    half = np.where(np.arange(20) < 10, 4.43, losses + 0.1)
    part = curve_verdict(judged(steps, losses, half, ["left_basin"] * 10 + ["ok"] * 10))
    assert part.name == "mixed" and "information beyond the loss from step 100 on only" in part.sentence
    late = np.where(np.arange(20) < 10, losses + 0.1, 4.43)
    copied = loss_copy(judged(steps, losses, late, ["ok"] * 20))
    words = f"From step {copied.start} to {copied.end} the curve carries no information"
    assert words in curve_verdict(judged(steps, losses, late, ["ok"] * 20)).sentence
    copy = curve_verdict(judged(steps, losses, np.full(20, 4.43), ["left_basin"] * 20))
    assert copy.name == "poor" and "The whole curve is the loss turned upside down" in copy.sentence
    one = curve_verdict(judged(steps[:1], losses[:1], losses[:1] + 0.2, ["ok"]))
    assert one.sentence.startswith("The estimate is ok")


def regime(rows, **options):
    """Verdicts and sentences of checkpoints given as (step, L(w*), mean sampled loss), with chance at 4.125."""
    parts = []
    for step, base, sampled in rows:
        part = made_sweep(noise(mean=sampled - base, sd=0.02), base=base, n_beta=66.67, chance=4.125, **options)
        parts.append(part.assign_coords(checkpoint=[step]))
    table = llcjax.estimates(xr.concat(parts, "checkpoint", data_vars="minimal", coords="minimal", compat="override"))
    return table["verdict"].values[:, 0].tolist(), table["sentence"].values[:, 0].tolist()


def test_checkpoints_at_chance_share_the_verdict_of_those_whose_draws_they_have():
    """L(w*) is 4.3 (above chance), 3.0 and 1.9, and every chain sees 4.43: none of them knows its checkpoint."""
    verdicts, sentences = regime([(0, 4.3, 4.43), (10, 3.0, 4.43), (20, 1.9, 4.43), (30, 4.3, 4.35)])
    assert verdicts == ["left_basin", "left_basin", "left_basin", "ok"]
    assert "whatever the checkpoint" in sentences[0] and "forgotten the model" in sentences[1]
    assert "L(w*) = 4.3 is not below 0.9 of 4.125" in sentences[3]
    assert "cannot tell whether they stayed local" in sentences[3]


# L(w*) and mean sampled loss of the regression transformer (experiments/regression/results), chance 4.125.
PUBLISHED = [
    (341, 4.252, 4.425), (984, 4.142, 4.424), (1465, 4.117, 4.424), (1910, 4.047, 4.424), (2181, 3.899, 4.421),
    (2490, 3.645, 4.417), (7192, 2.336, 4.425), (35353, 1.893, 4.412), (70707, 1.859, 4.269), (116161, 1.841, 3.936),
]  # fmt: skip
LOCAL = [
    (507, 4.200, 4.206), (661, 4.170, 4.195), (984, 4.140, 4.179), (1465, 4.116, 4.162), (1673, 4.097, 4.146),
    (1910, 4.045, 4.104), (2490, 3.644, 3.765), (7192, 2.336, 2.763), (35353, 1.892, 2.367), (136363, 1.828, 1.930),
]  # fmt: skip


def test_early_checkpoints_of_the_published_regime_left_the_basin():
    verdicts, sentences = regime(PUBLISHED)
    assert verdicts == ["left_basin"] * 10
    assert all("whatever the checkpoint" in sentence for sentence in sentences[:4])
    assert all("forgotten the model" in sentence for sentence in sentences[4:9])
    assert "is 92% of the way from L(w*) = 1.841 to 4.125" in sentences[9]


def test_late_checkpoints_do_not_hide_that_early_ones_left():
    """Most of a curve may lie where chains have climbed less high; early checkpoints have the draws of the highest."""
    late = [(100_000 + step, 1.84, 3.9) for step in range(12)]
    verdicts, _ = regime([*PUBLISHED, *late])
    assert verdicts == ["left_basin"] * 22


@pytest.mark.parametrize(("sampled", "expected"), [(2.9, "ok"), (3.1, "left_basin")])
def test_half_of_the_way_to_chance_is_too_far(sampled, expected):
    verdicts, _ = regime([(40_000, 1.9, sampled)])  # half of the way is 3.01
    assert verdicts == [expected]


def test_chains_that_start_near_chance_and_stay_local_are_not_sent_away():
    verdicts, sentences = regime(LOCAL)
    assert verdicts == ["ok"] * 10
    assert all("cannot tell whether they stayed local" in sentence for sentence in sentences[:6])
    assert all(sentence.startswith("chains agree, stay local") for sentence in sentences[6:])


def test_where_chance_tells_nothing_the_control_of_the_prior_does():
    part = made_sweep(noise(mean=0.1, sd=0.02), base=4.1, chance=4.125)
    for prior, expected in ((4.15, "left_basin"), (4.5, "ok")):
        known = part.assign(prior_loss=(("checkpoint", "setting"), [[prior]]))
        table = llcjax.estimates(known)
        assert table["verdict"].item() == expected
    assert (
        "localisation prior"
        in llcjax.estimates(part.assign(prior_loss=known["prior_loss"] * 0 + 4.15))["sentence"].item()
    )
    trained = made_sweep(noise(mean=0.1, sd=0.02), base=2.0, chance=4.125)
    trained = trained.assign(prior_loss=(("checkpoint", "setting"), [[2.05]]))
    assert llcjax.estimates(trained)["verdict"].item() == "ok", "chance goes before the control"


@pytest.mark.parametrize(("batch_size", "step_size"), [(None, 4e-3), (8, 1e-3), (8, 4e-3)])
def test_heating_is_what_steps_and_batches_add(batch_size, step_size, one_device):
    """Against the closed forms on a quadratic; 64 chains x 4,000 draws, error of both sides below 1%."""
    curvature = np.array([1.0, 0.6], np.float32)
    data = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    noise = 0.0 if batch_size is None else curvature**2 * data.var(0, dtype=np.float64) / batch_size
    known = dict(n_beta=200.0, localization=1.0)
    config = SweepConfig(
        **known, step_size=step_size, num_chains=64, num_draws=4000, num_burnin_steps=1000, batch_size=batch_size
    )

    def quadratic(w, batch):
        return 0.5 * jnp.sum(curvature * (w - batch) ** 2, -1)

    table = llcjax.estimates(llcjax.sweep(quadratic, bank_of(data.mean(0)), data, config, devices=one_device))
    exact = quadratic_llc(curvature, **known)
    heated = quadratic_llc(curvature, **known, step_size=step_size, gradient_variance=noise)
    assert table["heating"].item() == pytest.approx(heated - exact, rel=0.04)
    assert table["llc"].item() - table["heating"].item() == pytest.approx(exact, rel=0.03)
    biased = heated - exact > 0.25 * max(heated, 1)
    assert table["verdict"].item() == ("biased" if biased else "ok"), table["sentence"].item()
    assert not biased or "larger batch_size" in table["sentence"].item()
