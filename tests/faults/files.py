"""Files that are cut short, altered or gone, locks of the dead, and a second run on one folder."""

import json
import os
import platform
import shutil
import subprocess
import sys
import warnings

import numpy as np

from llcjax import output_folder
from llcjax.interrupt import Interrupted
from tests.faults.table import Row
from tests.faults.work import ROOT, sweep_into, swept_arrays, train_into, trained_arrays

CHUNKS = "sweep/**/c/**/*"
HOLDER = """
import sys, time
from pathlib import Path
from llcjax.output_folder import only_run
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def damage(file, random):
    """Cuts a file short, flips some bits of a byte, makes it zeros or removes it; what was done."""
    data, kind = bytearray(file.read_bytes()), random.choice(["cut", "altered", "zeros", "gone"])
    if kind == "gone":
        file.unlink()
        return kind
    place = int(random.integers(len(data)))
    if kind == "altered":
        data[place] ^= int(random.integers(1, 256))
    file.write_bytes({"cut": data[:place], "altered": data, "zeros": bytes(len(data))}[str(kind)])
    return str(kind)


def stopped_sweep(folder, after=0.5):
    """A sweep that was stopped in the middle, with the state of its launch in flight."""

    def stop(stats):
        if stats.draws_done > after * stats.total_draws:
            raise Interrupted("stopped")

    folder.mkdir()
    try:
        sweep_into(folder, on_chunk=stop)
    except Interrupted:
        return folder
    raise AssertionError("the sweep was not stopped")


def torn_chunks(tries, seed, folder):
    """Chunks of a whole sweep, or of one that was stopped."""
    (folder / "whole").mkdir()
    sweep_into(folder / "whole")
    stopped = stopped_sweep(folder / "stopped")
    (stopped / "sweep.resume.npz").unlink()
    return _damaged(
        "torn, altered or lost chunk of the store", [folder / "whole", stopped], folder, tries, seed, CHUNKS
    )


def torn_states(tries, seed, folder):
    """The saved state of the chains of a sweep that was stopped."""
    (folder / "whole").mkdir()
    sweep_into(folder / "whole")
    stopped = stopped_sweep(folder / "stopped")
    return _damaged("torn or altered state of the chains", [stopped], folder, tries, seed, "sweep.resume.npz")


def torn_segments(tries, seed, folder):
    """Files of a training that was stopped: the arrays of its orbax steps, and what makes each trusted."""
    (folder / "whole").mkdir()
    train_into(folder / "whole")
    work = folder / "stopped"
    work.mkdir()
    _train_until(work, 8)
    return _damaged(
        "torn, altered or lost file of a training's saved steps", [work], folder, tries, seed, "training/**/*",
        train_into, trained_arrays,
    )  # fmt: skip


def torn_banks(tries, seed, folder):
    """Files of a finished bank: it is refused, and trained again."""
    (folder / "whole").mkdir()
    train_into(folder / "whole")
    return _damaged(
        "torn, altered or lost file of a bank", [folder / "whole"], folder, tries, seed, "bank/**/*", train_into,
        trained_arrays,
    )  # fmt: skip


def _damaged(fault, sources, folder, tries, seed, pattern, work=sweep_into, arrays=swept_arrays):
    """Damages a random file of a copy, goes on, and compares."""
    whole, random = arrays(folder / "whole"), np.random.default_rng(seed)
    kinds, different, found = {}, 0, 0
    for index in range(tries):
        place = folder / f"try_{index}"
        shutil.copytree(sources[index % len(sources)], place)
        files = sorted(file for file in place.glob(pattern) if file.is_file())
        kind = damage(files[int(random.integers(len(files)))], random)
        kinds[kind] = kinds.get(kind, 0) + 1
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work(place)
        found += any("torn" in str(one.message) for one in said)
        different += arrays(place) != whole
        shutil.rmtree(place)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    happened = f"{listed}: found, that part made again, bit for bit as before"
    return Row(fault, tries, happened, different, {"said": found})


def _train_until(folder, saves):
    """A training that was stopped after some saves."""
    module = sys.modules["llcjax.train"]  # `llcjax.train` itself is the function
    save, count = module._Saver.save, [0]

    def stopping(self, *arguments):
        done = save(self, *arguments)
        count[0] += 1
        if count[0] == saves:
            raise Interrupted("stopped")
        return done

    module._Saver.save = stopping
    try:
        train_into(folder)
    except Interrupted:
        pass
    finally:
        module._Saver.save = save


def half_written_steps(tries, seed, folder):
    """An orbax step as a crash leaves it: under its temporary name, or under its own without some of its files."""
    (folder / "whole").mkdir()
    train_into(folder / "whole")
    (folder / "stopped").mkdir()
    _train_until(folder / "stopped", 8)
    whole, random, different = trained_arrays(folder / "whole"), np.random.default_rng(seed), 0
    for index in range(tries):
        place = folder / f"try_{index}"
        shutil.copytree(folder / "stopped", place)
        step = sorted((place / "training").glob("segment_*.json"))[int(random.integers(8))].with_suffix("")
        files = [file for file in step.rglob("*") if file.is_file()]
        for file in random.permutation(len(files))[: 1 + random.integers(len(files))]:
            files[file].unlink()
        if index % 2:
            step.rename(step.with_name(step.name + ".orbax-checkpoint-tmp"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_into(place)
        different += trained_arrays(place) != whole
    return Row("half-written orbax step", tries, "found, trained again from before it, bit for bit", different)


def locks(tries, seed, folder):
    """Locks that dead processes left, empty, torn, or of a process whose number is another's now."""
    random, lost = np.random.default_rng(seed), 0
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    whole = json.dumps({"pid": dead.pid, "host": platform.node()})
    texts = ["", "[1]", whole, json.dumps({"pid": 1, "host": platform.node()})]
    for index in range(tries):
        text = texts[index] if index < len(texts) else whole[: int(random.integers(len(whole)))]
        lock = folder / f"{index}.lock"
        lock.write_text(text)
        with output_folder.only_run(folder / str(index)):
            lost += json.loads(lock.read_text())["pid"] != os.getpid()
        lost += lock.exists()
    return Row("stale or torn lock", tries, "taken over", lost)


def second_runs(tries, seed, folder):
    """Two runs on one folder."""
    del seed
    refused = 0
    for index in range(tries):
        place = folder / str(index)
        place.mkdir()
        name, run = [("sweep", sweep_into), ("training", train_into)][index % 2]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", HOLDER, str(place / name)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as holder:
            holder.stdout.readline()
            try:
                run(place)
            except RuntimeError as error:
                refused += f"held by process {holder.pid} on {platform.node()}" in str(error)
            holder.kill()
        run(place)  # the lock of the dead is no obstacle
    return Row("second run on one folder", tries, "refused with the process that holds it", tries - refused)
