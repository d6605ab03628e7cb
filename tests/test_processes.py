"""Several processes share a sweep: the same numbers as one process, each writing its own part."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import llcjax
from llcjax import processes
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.interrupt import Interrupted, Preempted
from llcjax.store import is_sweep
from tests.test_cli import TINY

CONFIG = SweepConfig(
    n_beta=10.0, localization=(1.0, 2.0), step_size=1e-3, num_chains=2, num_draws=12, draws_per_chunk=4, batch_size=8
)

SWEEP = """
import sys
from pathlib import Path

from llcjax import processes

if len(sys.argv) > 3:
    processes.join()
from tests.test_processes import small_sweep

facts = small_sweep(int(sys.argv[1]), Path(sys.argv[2]))
print(facts["num_draws_done"].values.sum())
"""


def squares(params, batch):
    return (batch @ params["w"]) ** 2


def small_sweep(num_checkpoints, out):
    random = np.random.default_rng(0)
    params = {"w": random.normal(size=(num_checkpoints, 3)).astype(np.float32)}
    bank = CheckpointBank(params=params, steps=np.arange(num_checkpoints))
    return llcjax.sweep(squares, bank, random.normal(size=(64, 3)).astype(np.float32), CONFIG, out=out)


def run_processes(count, *arguments, expect=0, timeout=240):
    """Runs a Python command in several processes that find each other, and returns what each printed, or its errors."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for index in range(count):
        places = {processes.ADDRESS: address, processes.COUNT: str(count), processes.INDEX: str(index)}
        flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.getcwd(), **places}
        command = [sys.executable, *arguments]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        ended = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [expect] * count, "\n".join(err[-2000:] for _, err in ended)
    return [out if expect == 0 else err for out, err in ended]


@pytest.mark.parametrize("num_checkpoints", [5, 1])
def test_two_processes_draw_what_one_draws(tmp_path, num_checkpoints):
    one = small_sweep(num_checkpoints, tmp_path / "one")
    printed = run_processes(2, "-c", SWEEP, str(num_checkpoints), str(tmp_path / "two"), "join")
    draws = num_checkpoints * len(CONFIG.settings) * CONFIG.num_draws
    assert [text.split()[-1] for text in printed] == [str(draws)] * 2  # both return the whole sweep
    two = llcjax.open_sweep(tmp_path / "two")
    for name in ("loss", "baseline_loss", "distance", "first_nonfinite_step", "num_draws_done"):
        np.testing.assert_array_equal(one[name].values, two[name].values, err_msg=name)
    assert not list(tmp_path.glob("*.resume*"))


def test_the_whole_pipeline_in_two_processes(tmp_path):
    first, second = run_processes(
        2, "-m", "llcjax", "run", "regression", "--distributed", "--out", str(tmp_path / "run"), "--no-progress", *TINY
    )
    assert "report: " in first and "report: " not in second
    assert (tmp_path / "run" / "report.html").exists()
    facts = llcjax.open_sweep(tmp_path / "run" / "sweeps" / "seed_0")
    assert (facts["num_draws_done"].values == facts.sizes["draw"]).all()


def test_a_failure_in_one_process_ends_all(tmp_path):
    failing = SWEEP.replace(
        "facts =", "if processes.is_first():\n    (Path(sys.argv[2]) / 'x').mkdir(parents=True)\nfacts ="
    )
    first, second = run_processes(2, "-c", failing, "2", str(tmp_path / "taken"), "join", expect=1, timeout=60)
    assert "exists and is no store of a sweep" in first and "another process stopped" in second


def test_several_processes_need_a_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="out=None, but 2 processes need a folder"):
        small_sweep(1, None)
    assert not is_sweep(tmp_path)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({processes.COUNT: "2"}, "JAX_NUM_PROCESSES is set, but JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not"),
        ({}, "processes cannot meet .*srun"),
    ],
)
def test_incomplete_places_are_refused(environment, sentence):
    with pytest.raises(ValueError, match=sentence):
        processes.join(environment)


@pytest.mark.parametrize(("other", "kind"), [(1, Preempted), (2, Interrupted)])
def test_all_end_as_the_one_that_was_stopped(monkeypatch, other, kind):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    told = []
    monkeypatch.setattr("llcjax._compat.most_of_processes", lambda number: told.append(number) or max(number, other))
    with pytest.raises(Interrupted, match="another process stopped") as stopped:
        processes.together(lambda: None)
    assert type(stopped.value) is kind

    def preempted():
        raise Preempted("stopped at 10%")

    with pytest.raises(Preempted, match="10%"):
        processes.together(preempted)
    assert told == [0, 1]
