"""The command line: the whole pipeline in small, and one sentence with exit code 2 for bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import llcjax
from llcjax.checkpoints import CheckpointBank, save_bank
from llcjax.cli import main
from llcjax.models import TransformerConfig, icl_transformer
from llcjax.pipelines.regression import PRESETS, RegressionRun
from llcjax.pipelines.run_folder import load_config

TINY = [
    "--train.num-steps",
    "60",
    "--train.batch-size",
    "16",
    "--train.num-log-checkpoints",
    "5",
    "--train.num-linear-checkpoints",
    "3",
    "--model.model-width",
    "16",
    "--model.mlp-width",
    "16",
    "--sweep.num-draws",
    "8",
    "--sweep.num-burnin-steps",
    "4",
    "--sweep.num-chains",
    "2",
    "--sweep.batch-size",
    "16",
    "--num-examples",
    "64",
    "--num-test-sequences",
    "64",
    "--task.num-pairs",
    "4",
]


def llc(*arguments, expect=0):
    if expect == 0:
        main([str(argument) for argument in arguments])
        return
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == expect


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    llc("run", "regression", "--out", out, "--no-progress", *TINY)
    return out


def test_run_makes_everything(finished, capsys):
    assert {path.name for path in finished.iterdir()} >= {
        "banks", "sweeps", "metrics", "config.json", "report.html", "llc.csv", "stages.csv", "metrics.csv", "figures"
    }  # fmt: skip
    assert not (finished / "training").exists()
    page = (finished / "report.html").read_text()
    assert "In-context linear regression" in page and "llcjax run regression" in page
    assert not [line for line in page.splitlines() if 'src="http' in line]
    facts = llcjax.open_sweep(finished / "sweeps" / "seed_0")
    assert facts["loss"].dims == ("checkpoint", "setting", "chain", "draw") and "loss_position" in facts
    assert facts.attrs["chance"] == pytest.approx(2.125)


def test_a_second_run_skips_every_step(finished, capsys):
    files = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    llc("run", "regression", "--out", finished, "--no-progress", *TINY)
    assert files == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    printed = capsys.readouterr().out
    assert "Stages of LLC" in printed and str(finished.resolve() / "report.html") in printed


def test_report_and_stages_of_a_finished_run(finished, capsys):
    (finished / "report.html").unlink()
    llc("report", finished)
    assert (finished / "report.html").exists()
    llc("stages", finished / "sweeps" / "seed_0")
    assert "Stages of llc" in capsys.readouterr().out
    assert RegressionRun.experiment_from(load_config(finished)).task.num_pairs == 4


def test_a_report_needs_no_weights(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("params", "report.html", "llc.csv"))
    llc("report", copy)
    assert (copy / "report.html").exists()
    assert (copy / "llc.csv").read_text() == (finished / "llc.csv").read_text()
    shutil.rmtree(copy / "metrics")
    capsys.readouterr()
    llc("report", copy, expect=2)
    one_sentence(capsys, "seed_0/params is no readable orbax checkpoint")


def test_sweep_of_a_users_own_bank(tmp_path, capsys):
    init, _ = icl_transformer(TransformerConfig(num_heads=2, model_width=16, mlp_width=16), 8, 3)
    folder = tmp_path / "mine"
    folder.mkdir()
    for step in (0, 7):
        flat = {
            "/".join(str(entry.key) for entry in path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(init(jax.random.key(step)))
        }
        np.savez(folder / f"step_{step}.npz", **flat)
    llc("sweep", "regression", "--out", tmp_path / "o", "--bank", folder, "--no-progress", *TINY)
    assert "verdicts of 2 estimates" in capsys.readouterr().out
    assert llcjax.open_sweep(tmp_path / "o" / "sweeps" / "seed_0")["checkpoint"].values.tolist() == [0, 7]


def one_sentence(capsys, words):
    error = capsys.readouterr().err.strip()
    assert error.startswith("llcjax: ") and words in error and "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_bad_input_ends_with_one_sentence_and_code_2(finished, tmp_path, capsys):
    llc("run", "regression", "--preset", "huge", expect=2)
    one_sentence(capsys, "preset='huge'")
    llc("run", "vision", expect=2)
    one_sentence(capsys, "experiment='vision'")
    llc("fly", expect=2)
    one_sentence(capsys, "command='fly'")
    llc("run", "regression", "--out", finished, *TINY, "--sweep.seed", "3", expect=2)
    one_sentence(capsys, "another config (sweep.seed: 0 there, 3 asked for,")
    (tmp_path / "empty").mkdir()
    llc("run", "regression", "--out", tmp_path / "c", *TINY, "--sweep.batch-size", "128", expect=2)
    one_sentence(capsys, "batch_size=128 is larger than the 64 examples")
    assert not (tmp_path / "c").exists(), "nothing is claimed or trained before the input is checked"
    llc("sweep", "regression", "--out", tmp_path / "a", "--bank", tmp_path / "empty", *TINY, expect=2)
    one_sentence(capsys, "has no checkpoints")
    llc("run", "regression", "--out", tmp_path / "b", "--sweep.num-chains", "0", expect=2)
    one_sentence(capsys, "num_chains=0")
    llc("run", "regression", "--out", tmp_path / "b", "--sweep.step-size", "-0.1", expect=2)
    one_sentence(capsys, "step_size=-0.1")
    llc("stages", tmp_path / "nothing.csv", expect=2)
    one_sentence(capsys, "nothing.csv")
    broken = tmp_path / "store"
    broken.mkdir()
    (broken / "zarr.json").write_text("{}")
    llc("stages", broken, expect=2)
    one_sentence(capsys, "corrupt")
    llc("report", tmp_path / "empty", expect=2)
    one_sentence(capsys, "holds no run")


def test_nan_parameters_and_a_wrong_model_are_refused(tmp_path, capsys):
    init, _ = icl_transformer(TransformerConfig(num_heads=2, model_width=16, mlp_width=16), 8, 3)
    params = jax.tree.map(lambda x: np.asarray(x)[None] * np.nan, init(jax.random.key(0)))
    save_bank(CheckpointBank(params=params, steps=np.array([4])), tmp_path / "nan")
    llc("sweep", "regression", "--out", tmp_path / "o", "--bank", tmp_path / "nan", *TINY, expect=2)
    one_sentence(capsys, "step 4 contain NaN")
    save_bank(CheckpointBank(params={"w": np.zeros((1, 3), np.float32)}, steps=np.array([4])), tmp_path / "other")
    llc("sweep", "regression", "--out", tmp_path / "p", "--bank", tmp_path / "other", *TINY, expect=2)
    one_sentence(capsys, "does not fit the model")
    assert not (tmp_path / "o").exists() and not (tmp_path / "p").exists()  # refused before a folder is claimed


def test_help_explains_fields_with_units_and_defaults(capsys):
    for arguments in (
        ["--help"],
        ["run", "regression", "--help"],
        ["stages", "--help"],
        ["report", "--help"],
    ):
        try:
            main(arguments)
        except SystemExit as stopped:
            assert stopped.code == 0
    text = capsys.readouterr().out
    for words in ("localization", "squared parameters", "(default: 66.67)", "--preset", "Optimiser updates"):
        assert words in " ".join(text.split())


def test_a_dry_run_prints_the_plan_and_stores_nothing(tmp_path, capsys):
    main(["sweep", "regression", "--dry-run", "--out", str(tmp_path / "none"), "--sweep.num-draws", "2",
          "--sweep.num-burnin-steps", "0"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "124 (31 checkpoints" in printed and "predicted time" in printed and "us (measured" in printed
    assert not (tmp_path / "none").exists()


def test_presets_are_valid_json():
    for preset in PRESETS.values():
        assert RegressionRun.experiment_from(json.loads(json.dumps(_plain(preset)))) == preset


def _plain(preset):
    from llcjax.config import as_dict

    return as_dict(preset)


def test_interrupted_run_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    many = ["--train.num-steps", "200000", "--train.num-linear-checkpoints", "2000"]
    command = [sys.executable, "-m", "llcjax", "run", "regression", "--out", str(out), *TINY, *many]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not (out / "training").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert "Go on with: llcjax run regression --out" in error and "Traceback" not in error
    assert list((out / "training").glob("segment_*.json"))
