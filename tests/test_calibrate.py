"""Calibration: on a quadratic with a known law, through the command line, and its bad input."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from llcjax.calibrate import anchor_losses, calibrate, spread_checkpoints
from llcjax.checkpoints import CheckpointBank
from llcjax.cli import main
from llcjax.config import SweepConfig
from llcjax.config_file import load_sweep_config, save_sweep_config
from llcjax.estimators import estimates
from llcjax.plots import plot_sensitivity
from llcjax.reference.gaussian import quadratic_llc
from llcjax.sensitivity import curve_sensitivity, neighbors, stage_sensitivity
from llcjax.sweep import sweep

CURVATURE = np.ones(6, np.float32)
GRID = SweepConfig(
    n_beta=(50.0,),
    localization=(1.0, 3.0),
    step_size=(1e-6, 0.003, 0.009, 0.2),
    num_chains=6,
    num_draws=1500,
    num_burnin_steps=500,
    batch_size=None,
    draws_per_chunk=500,
)


def quadratic(params, _):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURE) * params**2)


@pytest.fixture(scope="module")
def bank():
    return CheckpointBank(params=np.zeros((2, 6), np.float32), steps=np.array([10, 20]))


@pytest.fixture(scope="module")
def result(bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration")
    return calibrate(quadratic, bank, None, GRID, chance=3.0, out=out), out


def test_the_recommended_setting_gives_the_known_llc(result):
    calibration, out = result
    config = calibration.recommended
    assert config is not None and config.step_size[0] in (0.003, 0.009), calibration.reasons
    one = calibration.table.isel(setting=calibration.chosen)
    known = quadratic_llc(CURVATURE, n_beta=50.0, localization=config.localization[0], step_size=config.step_size[0])
    assert np.all(np.abs(one["llc"].values - known) < 4 * one["llc_stderr"].values)
    assert config == dataclasses.replace(GRID, localization=config.localization, step_size=config.step_size)
    assert load_sweep_config(out / "calibrated.json") == config
    assert config.localization == (1.0,) and calibration.stable[calibration.chosen]


def test_steps_too_large_and_too_small_are_told_apart(result):
    judged = result[0].judged
    large, small = judged["step_size"].values == 0.2, judged["step_size"].values == 1e-6
    assert not judged["sound"].values[:, large].any() and not judged["sound"].values[:, small].any()
    assert not judged["alive"].values[:, large].any()
    assert not judged["mixed"].values[:, small].any()
    assert judged["local"].values[:, small].all()


def test_the_control_tells_how_far_the_loss_holds_the_chains(result, bank):
    """On a quadratic of curvature 1 chains rise by localization / (n_beta + localization) of what its prior does."""
    calibration, _ = result
    one, here = (data.isel(setting=calibration.chosen) for data in (calibration.table, calibration.judged))
    gamma = float(one["localization"])
    # 32 draws of half a chi-square of 6 have a standard error of sqrt(3 / 32) / 3 = 10%.
    assert one["prior_loss"].values == pytest.approx(3 / gamma, rel=0.4)
    assert here["free_share"].values == pytest.approx(gamma / (50 + gamma), rel=0.5)
    assert any(reason.startswith("held by the loss") for reason in calibration.reasons)
    alike = calibration.table["prior_loss"].values[:, calibration.table["localization"].values == gamma]
    assert np.ptp(alike, axis=1).tolist() == [0, 0]  # one prior, whatever n_beta and step size are
    tight = dataclasses.replace(GRID, localization=1000.0, step_size=(5e-5, 1.5e-4), num_control_draws=1000)
    held = calibrate(quadratic, bank, None, tight, chance=3.0)
    assert held.judged["free_share"].values == pytest.approx(1000 / 1050, rel=0.1)
    assert any("2 of 2 checkpoints the localisation alone holds" in reason for reason in held.reasons)
    free = calibrate(quadratic, bank, None, dataclasses.replace(GRID, localization=0.0), chance=3.0)
    assert np.isnan(free.judged["free_share"].values).all()  # no localisation has no prior


def test_chains_from_both_sides_meet(result):
    calibration, out = result
    bracket = calibration.bracket
    assert bracket.closed.all()
    assert np.all(np.abs(bracket.difference) < 4 * bracket.stderr)
    # Both sides have noise of their own: their errors add in squares, and no chain of one is that of the other.
    prior = xr.open_zarr(next(out.glob("bracket_*")), consolidated=False, chunks=None)
    anchored = calibration.facts["distance"].isel(setting=calibration.chosen)
    assert json.loads(prior.attrs["config"])["init"] == "prior"
    for theirs, ours in zip(prior["distance"].values[0, 0], anchored.values[0], strict=True):
        assert abs(np.corrcoef(theirs[-1000:], ours[-1000:])[0, 1]) < 0.5
    error = calibration.table["llc_stderr"].values[:, calibration.chosen]
    assert np.all(bracket.stderr > error)
    assert any("agree" in reason for reason in calibration.reasons)


def test_acceptance_falls_with_the_step(result):
    judged = result[0].judged.isel(checkpoint=0).sel(setting=slice(0, 3))
    assert np.all(np.diff(judged["acceptance"].values[:3]) < 0)


def test_without_a_good_setting_the_nearest_miss_is_named(bank):
    bad = dataclasses.replace(GRID, step_size=(0.2, 0.3), num_draws=40, num_burnin_steps=10)
    calibration = calibrate(quadratic, bank, None, bad, chance=3.0)
    assert calibration.recommended is None and calibration.bracket is None
    words = " ".join(calibration.reasons)
    assert "no setting of 4" in words and "nearest miss, n_beta 50" in words and "smaller step sizes" in words


def test_two_samplers_are_joined_on_setting(bank):
    short = dataclasses.replace(GRID, step_size=(0.006, 0.012), num_draws=60, num_burnin_steps=20)
    joined = calibrate(quadratic, bank, None, [short, dataclasses.replace(short, sampler="mala")], chance=3.0)
    assert joined.table["sampler"].values.tolist() == ["sgld"] * 4 + ["mala"] * 4
    assert joined.facts.sizes["setting"] == 8 and joined.table["setting"].values.tolist() == list(range(8))
    assert neighbors(joined.table, 0, "step_size") == [1]
    assert np.isfinite(joined.table["llc"].values).all()


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        ([], "config is empty"),
        ([GRID, GRID], "names a sampler twice"),
        ([GRID, dataclasses.replace(GRID, sampler="mala", num_draws=7)], "differ in num_draws"),
    ],
)
def test_bad_configs(bank, configs, words):
    with pytest.raises(ValueError, match=words):
        calibrate(quadratic, bank, None, configs)


def test_checkpoints_are_spread_over_the_curve():
    steps = np.arange(100)
    loss = np.where(steps < 50, 4.0, 4.0 - 0.05 * (steps - 49))
    many = CheckpointBank(params=loss[:, None].astype(np.float32), steps=steps)
    chosen = spread_checkpoints(many, loss, chance=4.1)
    first_trained = steps[loss < 0.9 * 4.1][0]
    assert len(chosen) == 5 and chosen.steps[0] == first_trained and chosen.steps[-1] == 99
    assert np.diff(loss[chosen.steps]).max() < -0.3
    everything = spread_checkpoints(many, loss)
    assert len(everything) == 5 and everything.steps[0] == 0
    broken = np.where(steps == first_trained, np.nan, loss)
    assert spread_checkpoints(many, broken, chance=4.1).steps[0] == first_trained + 1
    assert len(spread_checkpoints(many, loss, chance=0.1)) == 5, "nothing is trained: all are looked at"


@pytest.mark.parametrize("data", [np.ones((6000, 1), np.float32), lambda key: jnp.ones((3, 1)), None])
def test_the_losses_of_all_checkpoints_are_looked_at(data):
    many = CheckpointBank(params=np.array([[1.0], [3.0], [np.nan]], np.float32), steps=np.arange(3))
    config = SweepConfig(batch_size=None if callable(data) or data is None else 100)
    found = anchor_losses(lambda w, batch: w[0] ** 2 + 0 * jnp.sum(w), many, data, config)
    assert found[:2] == pytest.approx([1.0, 9.0]) and np.isnan(found[2])


def test_the_paper_grid_looks_at_the_checkpoint_whose_loss_rises_most():
    """L(w*) of the regression transformer; the rise of its loss is largest at step 2,490 (experiments/regression)."""
    steps = [0, 984, 1465, 1910, 2181, 2490, 2843, 3707, 7192, 13954, 35353, 116161, 318181, 500000]
    loss = [4.34, 4.14, 4.116, 4.045, 3.897, 3.644, 3.427, 3.025, 2.336, 2.017, 1.892, 1.84, 1.782, 1.74]
    bank = CheckpointBank(params=np.zeros((14, 1), np.float32), steps=np.array(steps))
    chosen = spread_checkpoints(bank, np.array(loss), chance=4.125).steps.tolist()
    assert chosen[0] == 2490 and chosen[-1] == 500000 and len(chosen) == 5


def test_config_file_refuses_what_is_no_config(tmp_path):
    path = tmp_path / "c.json"
    for text, words in (
        ("[1]", "no JSON object"),
        ("{", "cannot be read"),
        ('{"stepsize": 1}', "unknown field 'stepsize'"),
        ('{"num_chains": 2.5}', "not a whole number"),
        ('{"step_size": ["a"]}', "not a list of numbers"),
        ('{"box": true}', "not a number or null"),
        ('{"init": "middle"}', "not one of 'anchor', 'prior'"),
        ('{"step_size": -1}', "step_size=-1"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_sweep_config(path)
    path.write_text('{"step_size": 0.25}')
    assert load_sweep_config(path, GRID) == dataclasses.replace(GRID, step_size=(0.25,))
    assert load_sweep_config(save_sweep_config(GRID, path)) == GRID


def test_sensitivity_of_curve_and_stages():
    steps = np.unique(np.geomspace(1, 5000, 24).astype(int))
    anchors = np.zeros((len(steps), 6), np.float32)
    scale = np.r_[np.linspace(0.01, 1, 12), np.ones(4), np.linspace(1, 0.05, len(steps) - 16)].astype(np.float32)
    params = {"w": anchors, "h": scale[:, None]}
    bank = CheckpointBank(params=params, steps=steps)
    grid = dataclasses.replace(GRID, step_size=(0.003, 0.006), num_draws=300, num_burnin_steps=100)
    mask = {"w": True, "h": False}
    facts = sweep(lambda p, _: 0.5 * p["h"][0] * jnp.sum(p["w"] ** 2), bank, None, grid, mask=mask)
    table = estimates(facts)
    bands = curve_sensitivity(table, 0)
    assert bands["hyperparameter"].values.tolist() == ["localization", "step_size"]
    assert np.all(bands["lower"] <= bands["llc"]) and np.all(bands["upper"] >= bands["llc"])
    assert len(plot_sensitivity(bands).axes) >= 2
    variants = stage_sensitivity(table)
    assert [variant.name for variant in variants[:3]] == [
        "all chains and draws", "first half of the chains", "second half of the chains"
    ]  # fmt: skip
    assert variants[-1].name == "step_size 0.006 for 0.003" and len(variants) == 7
    assert all(len(variant.matched) == len(variants[0].boundaries) for variant in variants)
    assert len(variants[0].boundaries) >= 1


TINY_WORDS = """
--train.num-steps 40 --train.batch-size 16 --train.num-log-checkpoints 4
--train.num-linear-checkpoints 2 --model.model-width 16 --model.mlp-width 16
--task.num-pairs 4 --num-examples 64 --num-test-sequences 64
--sweep.num-chains 2 --sweep.batch-size 16 --sweep.num-draws 12 --sweep.num-burnin-steps 4"""
TINY = TINY_WORDS.split()


@pytest.mark.slow
def test_a_second_sampler_and_a_warm_up_through_the_command_line(tmp_path, capsys):
    words = ["calibrate", "regression", "--out", str(tmp_path), "--no-progress", *TINY, "--checkpoints", "40"]
    second = ["--second-sampler", "rmsprop_sgld", "--second-step-size", "1e-3", "2e-3"]
    warm = ["--target-acceptance", "0.9"]
    main([*words, "--sweep.step-size", "1e-4", "--sweep.localization", "300", "1000", *second, *warm])
    printed = capsys.readouterr().out
    assert "no setting is recommended" in printed and "no checkpoint is trained" in printed
    assert printed.count("MALA would accept 90% of the moves") == 2
    folder = tmp_path / "calibration"
    names = sorted(path.name for path in folder.glob("*") if path.is_dir())
    assert len(names) == 4 and names[0] == "grid_rmsprop_sgld" and names[3] == "warmup_sgld"
    assert names[1].startswith("grid_sgld_66.67_1000_") and names[2].startswith("grid_sgld_66.67_300_")
    facts = xr.open_zarr(folder / "grid_rmsprop_sgld", consolidated=False, chunks=None)
    assert facts["step_size"].values.tolist() == [1e-3, 2e-3] * 2
    assert facts["localization"].values.tolist() == [300.0, 300.0, 1000.0, 1000.0]
    page = (folder / "calibration.html").read_text()
    assert "10 settings at steps 40" in page and "Step-size warm-up" in page and "step size at 90%" in page
    with pytest.raises(SystemExit):
        main([*words, "--second-sampler", "sgdl"])
    assert "sampler='sgdl' is unknown" in capsys.readouterr().err


def test_calibrate_through_the_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    grid = ["--sweep.step-size", "1e-4", "3e-4", "--sweep.localization", "300", "1000"]
    main(["calibrate", "regression", "--out", str(out), "--no-progress", *TINY, *grid])
    printed = capsys.readouterr().out
    assert "no setting is recommended" in printed and "no checkpoint is trained" in printed
    assert "LLC at steps" in printed and "R-hat" in printed
    folder = out / "calibration"
    page = (folder / "calibration.html").read_text()
    assert "data:image/png" in page and 'src="http' not in page
    assert {path.name for path in folder.glob("*.png")} == {"calibration_llc.png", "calibration_health.png"}
    settings = tmp_path / "mine.json"
    settings.write_text(json.dumps({"localization": 777.0, "num_draws": 5}))
    main(["sweep", "regression", "--out", str(out), "--config", str(settings), "--no-progress", *TINY[:-4]])
    facts = xr.open_zarr(out / "sweeps" / "seed_0", consolidated=False, chunks=None)
    assert facts["localization"].values.tolist() == [777.0]
    capsys.readouterr()
    main(["report", str(out)])
    report = (out / "report.html").read_text()
    assert '<a href="calibration/calibration.html">how the setting was chosen</a>' in report
    verdict = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("curve: "))
    assert verdict.split(" - ")[0] in ("curve: good", "curve: mixed", "curve: poor") and "estimates" in verdict
    settings.write_text('{"colour": 3}')
    with pytest.raises(SystemExit) as stopped:
        main(["run", "regression", "--config", str(settings)])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "unknown field 'colour'" in error and len(error.splitlines()) == 1
