"""Calibration: on a quadratic with a known law, through the command line, and its bad input."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from llcjax.calibrate import calibrate, spread_checkpoints
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


def test_chains_from_both_sides_meet(result):
    bracket = result[0].bracket
    assert bracket.closed.all()
    assert np.all(np.abs(bracket.difference) < 4 * bracket.stderr + 0.05)
    assert any("agree" in reason for reason in result[0].reasons)


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
    many = CheckpointBank(params=np.zeros((100, 1), np.float32), steps=steps, metrics={"train_loss": loss})
    chosen = spread_checkpoints(many, chance=4.1)
    assert len(chosen) == 5 and chosen.steps[-1] == 99 and chosen.steps[0] >= 55
    assert len(spread_checkpoints(dataclasses.replace(many, metrics={}))) == 5


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
    variants = stage_sensitivity(facts, table)
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
    settings.write_text('{"colour": 3}')
    with pytest.raises(SystemExit) as stopped:
        main(["run", "regression", "--config", str(settings)])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "unknown field 'colour'" in error and len(error.splitlines()) == 1
