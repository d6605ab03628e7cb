"""Too little disk, memory or answer from a device, and chains that break."""

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jax
import numpy as np

import llcjax
from llcjax import watchdog
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.program import Program
from llcjax.sweep import sweep
from tests.faults.files import stopped_sweep
from tests.faults.table import Row
from tests.faults.work import (
    Child,
    checkpoints,
    examples,
    network,
    sweep_into,
    swept_arrays,
    train_into,
    trained_arrays,
)

PAGE = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def replaced(owner, name, value):
    """An attribute replaced for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def no_more_room():
    """Yields what makes every write beyond so many bytes of a file fail from then on, as the kernel does it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda bytes_: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disks(tries, seed, folder):
    """A disk that is full from a random chunk or save on."""
    random, lost = np.random.default_rng(seed), 0
    for name, work in (("sweep", sweep_into), ("train", train_into)):
        (folder / name).mkdir()
        work(folder / name)
    saver = sys.modules["llcjax.train"]._Saver
    for index in range(tries):
        place, after, room = folder / str(index), int(random.integers(1, 12)), int(random.integers(0, 300))
        place.mkdir()
        calls = []
        with no_more_room() as fill:

            def count(calls=calls, after=after, room=room, fill=fill):
                calls.append(0)
                if len(calls) == after:
                    fill(room)

            if index % 2:
                with replaced(saver, "due", lambda *_, count=count, **__: count() or True):
                    said = _error(train_into, place)
            else:
                said = _error(sweep_into, place, begun=None, on_chunk=lambda _, count=count: count())
        lost += "cannot be written" not in said or "make room there" not in said
        work, arrays, name = [(sweep_into, swept_arrays, "sweep"), (train_into, trained_arrays, "train")][index % 2]
        work(place)
        lost += arrays(place) != arrays(folder / name)
    return Row("disk full at a random moment", tries, "one sentence; started again: bit for bit", lost)


def read_only_folders(tries, seed, folder):
    """A folder without leave to write, at the start or after half of the sweep."""
    del seed
    with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own folders are closed to other users
        return _read_only(tries, Path(open_to_all))


def _read_only(tries, folder):
    folder.chmod(0o755)
    lost = 0
    (folder / "whole").mkdir()
    sweep_into(folder / "whole")
    for index in range(tries):
        place = folder / str(index)
        if index % 2:
            stopped_sweep(place)
        else:
            place.mkdir()
        _allow(place, False)
        said = folder / f"said_{index}"
        said.touch()
        said.chmod(0o666)
        assert Child(_as_nobody, place, said).end() == 0
        lost += "cannot be written" not in said.read_text() or "allow writing" not in said.read_text()
        _allow(place, True)
        sweep_into(place)
        lost += swept_arrays(place) != swept_arrays(folder / "whole")
    return Row("read-only folder", tries, "one sentence; allowed again: bit for bit", lost)


def _allow(folder, yes):
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if yes else 0o555) if path.is_dir() else 0o666 if yes else 0o444)


def _as_nobody(place, said, begun):
    del begun
    if os.geteuid() == 0:  # who may write anywhere
        warm = said.with_name(f"{said.name}_warm")
        warm.mkdir()
        sweep_into(warm)  # imports what jax and zarr load late, which nobody may not be allowed to read
        os.setuid(65534)
    said.write_text(_error(sweep_into, place))


def _error(work, *arguments, **options):
    try:
        work(*arguments, **options)
    except OSError as error:
        return str(error)
    return "no error"


def out_of_memory(tries, seed, folder):
    """Devices that take at most so many chains at once."""
    random, lost = np.random.default_rng(seed), 0
    whole = sweep_into(folder, out=None)
    for _ in range(tries):
        most, seen = int(random.integers(2, 8)), []

        def small(self, states, *rest, most=most, seen=seen):
            width = jax.tree.leaves(states)[0].shape[0]
            seen.append(width)
            if width > most:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            return advance(self, states, *rest)

        with replaced(Program, "advance", small) as advance, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            facts = sweep_into(folder, out=None)
        halved = any("ran out of memory" in str(one.message) for one in said) and seen[-1] <= most
        lost += not halved or _apart(facts, whole) > 1e-5
    return Row("device out of memory", tries, "launch halved until it fits; within 1e-5 of the whole", lost)


def _apart(one, other):
    """The largest relative difference of the losses."""
    return float(np.nanmax(np.abs(one["loss"].values / other["loss"].values - 1)))


def broken_runs(tries, seed, folder):
    """NaN or infinity in the parameters of one checkpoint, or in its loss from some distance on."""
    del folder
    random, lost = np.random.default_rng(seed), 0
    bank, config = checkpoints(), SweepConfig(
        n_beta=10.0, step_size=1e-3, localization=1.0, num_chains=2, num_draws=30, batch_size=8
    )  # fmt: skip
    healthy = sweep(network, bank, examples(), config, devices=jax.local_devices()[:1])
    for index in range(tries):
        victim, value = int(random.integers(len(bank))), [np.nan, np.inf, 1e30][index % 3]
        params = {name: leaf.copy() for name, leaf in bank.params.items()}
        params["second"][victim, int(random.integers(5))] = value
        broken = CheckpointBank(params=params, steps=bank.steps)
        facts = sweep(network, broken, examples(), config, devices=jax.local_devices()[:1])
        others = np.arange(len(bank)) != victim
        lost += any(
            not np.array_equal(facts[n].values[others], healthy[n].values[others]) for n in ("loss", "distance")
        )
        lost += bool((facts["first_nonfinite_step"].values[others] >= 0).any())
        lost += str(llcjax.estimates(facts)["verdict"].values[victim, 0]) not in ("failed", "diverged")
    return Row("NaN, infinity or 1e30 in a checkpoint", tries, "verdict `failed`; the others bit for bit", lost)


def hung_devices(tries, seed, folder):
    """Devices that do not answer for a while, with patience of half a second in place of a minute."""
    random, lost = np.random.default_rng(seed), 0
    whole = sweep_into(folder, out=None)
    for _ in range(tries):
        when, calls = int(random.integers(3, 12)), []

        def hanging(self, *rest, when=when, calls=calls):
            calls.append(0)
            if len(calls) == when:
                time.sleep(3)
            return advance(self, *rest)

        with (
            replaced(watchdog, "LEAST_PATIENCE", 0.5),
            replaced(watchdog, "FACTOR", 5.0),
            replaced(Program, "advance", hanging) as advance,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            facts = sweep_into(folder, out=None)
        told = [str(one.message) for one in said if "If they hang, end process" in str(one.message)]
        lost += not told or not facts.equals(whole)
    return Row("device that does not answer", tries, "said with what to do; the sweep goes on once it answers", lost)


def memory(tries, seed, folder):
    """Memory of the process over many launches."""
    del seed
    file = folder / "memory.json"
    assert Child(_many_launches, tries, folder, file).end(3600) == 0
    early, late, launches = json.loads(file.read_text())
    growth = late / early - 1
    happened = (
        f"resident memory grows by {growth:.1%} from launch {launches // 10} to {launches} ({late / 2**20:.0f} MiB)"
    )
    return Row("many launches", launches, happened, int(growth > 0.05), {"growth": growth})


def _many_launches(count, folder, file, begun):
    del begun
    values = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    bank = CheckpointBank(params=values, steps=np.arange(count))
    config = SweepConfig(
        n_beta=10.0, step_size=1e-3, num_chains=2, num_draws=10, draws_per_chunk=10, runs_per_launch=2, batch_size=None
    )
    seen = []

    def on_chunk(_):
        with open("/proc/self/statm") as usage:
            seen.append(int(usage.read().split()[1]) * PAGE)

    loss = lambda w, _: 0.5 * (w**2).sum()  # noqa: E731
    sweep(loss, bank, None, config, out=folder / "s", devices=jax.local_devices()[:1], on_chunk=on_chunk)
    assert len(seen) == count
    file.write_text(json.dumps([max(seen[: count // 10]), max(seen[-count // 10 :]), count]))
