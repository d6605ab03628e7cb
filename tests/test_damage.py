"""What is torn is found and made again; what is whole is left alone."""

import os
import shutil
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import llcjax
from llcjax.config import SweepConfig
from llcjax.damage import is_whole
from llcjax.interrupt import StopRequest, Terminated, sigterm_raises
from llcjax.store import load_dataset, save_dataset
from llcjax.sweep import sweep
from llcjax.watchdog import Watchdog

CONFIG = SweepConfig(
    n_beta=(10.0, 20.0), step_size=1e-3, num_chains=2, num_draws=12, draws_per_chunk=4, batch_size=8,
    baseline="dataset", num_control_draws=2, per_position=True, runs_per_launch=2,  # a launch is one group
)  # fmt: skip
DATA = np.random.default_rng(1).normal(size=(16, 7)).astype(np.float32)


def two_positions(w, batch):
    return (batch @ w)[:, None] ** 2 * np.array([1.0, 2.0], np.float32)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A finished sweep with everything that is measured once a checkpoint."""
    path = tmp_path_factory.mktemp("stored") / "s"
    go_on(path)
    return path


def bank():
    values = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    return llcjax.CheckpointBank(params=values, steps=np.arange(3))


def go_on(path):
    return sweep(two_positions, bank(), DATA, CONFIG, out=path, probes={"few": DATA[:3]})


@pytest.mark.parametrize("file", ["loss/c/1/0/0/2", "num_draws_done/c/1/0", "first_nonfinite_step/c/1/0/0"])
@pytest.mark.parametrize("how", ["cut", "altered", "gone"])
def test_a_broken_chunk_is_drawn_again_and_no_other(stored, tmp_path, file, how):
    whole = llcjax.open_sweep(stored).load()
    path = tmp_path / "s"
    shutil.copytree(stored, path)
    data = (path / file).read_bytes()
    if how == "gone":
        (path / file).unlink()
    else:
        (path / file).write_bytes(data[:-3] if how == "cut" else data[:-1] + bytes([data[-1] ^ 4]))
    untouched = path / "loss/c/2/1/0/0"
    before = untouched.stat().st_mtime_ns
    assert not is_whole(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done = go_on(path)
    assert done.load().equals(whole) and is_whole(path)
    # A count that is gone is a group that was not begun; all others are told.
    told = [str(one.message) for one in said if "1 chunks of" in str(one.message)]
    assert (told and file in told[0]) or (how == "gone" and file.startswith("num_draws_done"))
    assert untouched.stat().st_mtime_ns == before


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize(
    "name",
    [
        "checkpoint",
        "draw",
        "position",
        "localization",
        "init_loss",
        "init_loss_stderr",
        "init_loss_position",
        "prior_loss",
        "init_probe_few",
    ],
)
def test_what_is_measured_once_is_measured_again(stored, tmp_path, name, how):
    whole = llcjax.open_sweep(stored).load()
    shutil.copytree(stored, tmp_path / "s")
    (chunk,) = [file for file in (tmp_path / "s" / name / "c").rglob("*") if file.is_file()]
    chunk.unlink() if how == "gone" else chunk.write_bytes(chunk.read_bytes()[:-2])
    assert not is_whole(tmp_path / "s")
    assert go_on(tmp_path / "s").load().equals(whole) and is_whole(tmp_path / "s")


def test_a_store_of_an_earlier_version_without_checksums_is_taken(stored, tmp_path):
    """There a chunk that is not written holds the fill value."""
    import zarr

    shutil.copytree(stored, tmp_path / "s")
    del zarr.open_group(str(tmp_path / "s")).attrs["checksums"]
    (tmp_path / "s/first_nonfinite_step/c/0/0/0").unlink()
    assert is_whole(tmp_path / "s")


def test_a_half_written_dataset_is_none(tmp_path, monkeypatch):
    data = xr.Dataset({"a": ("x", np.arange(3.0))}, attrs={"fingerprint": "f"})
    save_dataset(data, tmp_path / "d")
    save_dataset(data * 2, tmp_path / "d")
    assert load_dataset(tmp_path / "d").identical((data * 2).assign_attrs((data * 2).attrs))

    def killed(*_, **__):
        raise KeyboardInterrupt

    # What comes between the whole draft and its place; zarr's own threads keep theirs.
    monkeypatch.setattr("llcjax.store.shutil", SimpleNamespace(rmtree=killed))
    with pytest.raises(KeyboardInterrupt):
        save_dataset(data, tmp_path / "new")
    assert load_dataset(tmp_path / "new") is None
    (chunk,) = (tmp_path / "d/a/c").iterdir()
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert load_dataset(tmp_path / "d") is None


def test_sigterm_is_no_error_that_a_reader_swallows():
    with pytest.raises(Terminated), sigterm_raises():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise AssertionError("taken for a broken file") from error


def test_a_sigterm_that_came_too_late_is_passed_on():
    with pytest.raises(Terminated), sigterm_raises(), StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
    with sigterm_raises():
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(ValueError, match="own"), StopRequest():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("own")
        assert signal.getsignal(signal.SIGTERM) == before


def test_a_wait_that_is_long_is_told_and_a_usual_one_is_not(monkeypatch):
    import time

    monkeypatch.setattr("llcjax.watchdog.LEAST_PATIENCE", 0.2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with Watchdog("a chunk", "all is kept") as watchdog:
            for seconds in (0.3, 0.01, 0.01):  # the first one compiles
                with watchdog.waiting(10.0):
                    time.sleep(seconds)
            assert not said
            with watchdog.waiting(10.0):
                time.sleep(1.0)
    assert 1 <= len(said) <= 3
    assert f"end process {os.getpid()} " in str(said[0].message) and "all is kept" in str(said[0].message)
