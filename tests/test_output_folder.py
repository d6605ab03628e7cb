"""One run a folder, and a disk that takes no more loses nothing."""

import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.output_folder import only_run, write_text, writing_to
from llcjax.pipelines.run_folder import kept
from llcjax.sweep import sweep
from llcjax.train import TrainConfig, train

CONFIG = SweepConfig(
    n_beta=100.0, localization=1.0, step_size=1e-3, num_chains=2, num_draws=40, batch_size=None, draws_per_chunk=5
)
TRAIN = TrainConfig(num_steps=40, batch_size=2, num_log_checkpoints=0, num_linear_checkpoints=5)

HOLDER = """
import sys, time
from pathlib import Path
from llcjax.output_folder import only_run
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def quadratic(w, _):
    return 0.5 * jnp.sum(w**2)


def linear(w, batch):
    return (batch @ w) ** 2


def sample(key, size):
    return jnp.ones((size, 3)) * (key.dtype is not None)


def start(key):
    return jnp.ones(3)


@pytest.fixture(scope="module")
def bank():
    params = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * 0.1
    return CheckpointBank(params=params, steps=np.arange(4))


def lock_of(folder):
    return folder.with_name(folder.name + ".lock")


@contextlib.contextmanager
def held_by_another(folder):
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_and_a_dead_ones_lock_taken_over(tmp_path, bank, one_device):
    with held_by_another(tmp_path / "s") as holder, held_by_another(tmp_path / "t") as trainer:
        for process, run in (
            (holder, lambda: sweep(quadratic, bank, None, CONFIG, out=tmp_path / "s", devices=one_device)),
            (trainer, lambda: train(start, linear, sample, TRAIN, work_dir=tmp_path / "t", progress=False)),
        ):
            with pytest.raises(RuntimeError, match=f"held by process {process.pid} on {platform.node()};"):
                run()
    assert not (tmp_path / "s").exists() and not (tmp_path / "t").exists()
    assert lock_of(tmp_path / "s").exists()  # SIGKILL left it behind
    done = sweep(quadratic, bank, None, CONFIG, out=tmp_path / "s", devices=one_device)
    assert (done["num_draws_done"].values == 40).all()
    train(start, linear, sample, TRAIN, work_dir=tmp_path / "t", progress=False)
    assert not lock_of(tmp_path / "s").exists() and not lock_of(tmp_path / "t").exists()


def test_a_finished_sweep_is_read_while_another_holds_it(tmp_path, bank, one_device):
    done = sweep(quadratic, bank, None, CONFIG, out=tmp_path / "s", devices=one_device).load()
    with held_by_another(tmp_path / "s"):
        assert done.identical(sweep(quadratic, bank, None, CONFIG, out=tmp_path / "s", devices=one_device).load())


@pytest.mark.parametrize("text", ["", "{", "[1]", json.dumps({"pid": 1, "host": platform.node()})])
def test_a_stale_or_torn_lock_is_taken_over(tmp_path, text):
    lock_of(tmp_path / "s").write_text(text)
    with only_run(tmp_path / "s"):
        assert json.loads(lock_of(tmp_path / "s").read_text()) == {"pid": os.getpid(), "host": platform.node()}


def test_a_lock_of_another_host_is_not_taken_over(tmp_path):
    lock_of(tmp_path / "s").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with (
        pytest.raises(RuntimeError, match="held by process 7 on elsewhere; .* remove .*s.lock"),
        only_run(tmp_path / "s"),
    ):
        pass
    assert lock_of(tmp_path / "s").exists()


def test_without_locks_of_the_file_system_the_process_id_decides(tmp_path, monkeypatch):
    def no_flock(handle, how):
        raise OSError(95, "not supported")

    monkeypatch.setattr("llcjax.output_folder.fcntl.flock", no_flock)
    with (
        only_run(tmp_path / "s"),
        pytest.raises(RuntimeError, match=f"process {os.getpid()}"),
        only_run(tmp_path / "s"),
    ):
        pass
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock_of(tmp_path / "s").write_text(json.dumps({"pid": dead.pid, "host": platform.node()}))
    with only_run(tmp_path / "s"):
        pass


@contextlib.contextmanager
def no_more_room(wanted):
    """Every write to a file fails halfway from when `wanted()` is called: the kernel's own limit of a file's size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (wanted, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("room", "after"), [(0, 0), (0, 100), (10, 200), (150, 100)])
def test_a_full_disk_keeps_what_a_sweep_has_done(tmp_path, bank, one_device, room, after):
    whole = sweep(quadratic, bank, None, CONFIG, devices=one_device)
    out = tmp_path / "s"
    with no_more_room(room) as fill:

        def on_chunk(stats):
            if stats.draws_done >= after:
                fill()

        with pytest.raises(OSError, match="cannot be written .* make room .* what was done is kept") as error:
            sweep(quadratic, bank, None, CONFIG, out=out, on_chunk=on_chunk, devices=one_device, save_every_seconds=0)
    assert str(out) in str(error.value) and not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.partial"))
    counts = []
    done = sweep(quadratic, bank, None, CONFIG, out=out, on_chunk=counts.append, devices=one_device)
    assert counts[0].draws_done >= after  # at most the chunk after the last saved state is drawn again
    for name in whole.data_vars:
        np.testing.assert_array_equal(whole[name].values, done[name].values, err_msg=name)


def test_a_full_disk_keeps_what_training_has_done(tmp_path):
    whole = train(start, linear, sample, TRAIN, progress=False)[0]
    work, calls = tmp_path / "t", []
    with no_more_room(10) as fill:
        module = sys.modules["llcjax.train"]  # `llcjax.train` itself is the function
        save = module._Saver.save

        def filling(self, *args):
            calls.append(0)
            if len(calls) == 3:
                fill()
            return save(self, *args)

        with pytest.MonkeyPatch.context() as patched, pytest.raises(OSError, match="cannot be written .* make room"):
            patched.setattr(module._Saver, "save", filling)
            train(start, linear, sample, TRAIN, work_dir=work, progress=False, save_every_seconds=0)
    assert {path.name for path in work.glob("*.json")} == {"segment_1.json", "segment_2.json"}
    again = train(start, linear, sample, TRAIN, work_dir=work, progress=False)[0]
    np.testing.assert_array_equal(again.params, whole.params)


def test_a_read_only_folder_gets_a_sentence(tmp_path):
    with (
        pytest.raises(OSError, match="x cannot be written .Read-only file system.; allow writing"),
        writing_to(tmp_path / "x"),
    ):
        raise OSError(30, "Read-only file system")
    with pytest.raises(OSError, match="other"), writing_to(tmp_path / "x"):
        raise OSError(5, "other")


def test_a_full_disk_in_the_middle_of_a_checkpoint_gets_a_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    with pytest.raises(OSError, match="t cannot be written .No space left on device.; make room"):
        train(start, linear, sample, TRAIN, work_dir=tmp_path / "t", progress=False)


def test_parts_side_by_side_measure_what_they_share_once(tmp_path):
    at_once, made = Barrier(4), []

    def make():
        made.append(len(made))
        return xr.Dataset({"loss": ("step", np.arange(3.0))})

    def part(_):
        at_once.wait()
        return kept(tmp_path / "run" / "metrics" / "seed_0", ("bank", 1), make)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(part, range(4)))
    assert made == [0]
    for one in found:
        xr.testing.assert_identical(one, found[0])


def test_processes_that_note_the_same_config_at_once_do_not_disturb_each_other(tmp_path):
    note = "import sys\nfrom pathlib import Path\nfrom llcjax.output_folder import write_text\n"
    note += "for _ in range(200): write_text(Path(sys.argv[1]), 'x' * 1000)"
    path = tmp_path / "config.json"
    others = [subprocess.Popen([sys.executable, "-c", note, str(path)], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(other.communicate()[1], other.returncode) for other in others] == [(b"", 0)] * 3
    write_text(path, "last")
    assert path.read_text() == "last" and list(tmp_path.iterdir()) == [path]
