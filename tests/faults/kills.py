"""Processes that get a signal at random moments."""

import itertools
import signal
import time

import numpy as np

import llcjax
from tests.faults.table import Row
from tests.faults.work import SWEEP, TRAIN, Child, sweep_into, swept_arrays, train_into, trained_arrays

IN_A_ROW = 3
AT_WORK = 0.75
"""Share of the signals that fall after the first chunk of draws; the others fall anywhere, also while it compiles."""


def killed(kind, tries, seed, folder):
    """Kills work at random moments, up to three times in a row before it may end, until it was killed `tries` times."""
    sent, different, facts = _signalled(kind, tries, seed, folder, signal.SIGKILL, -signal.SIGKILL)
    happened = f"started again: bit for bit what an uninterrupted {kind} gives"
    return Row(f"SIGKILL at a random moment of a {kind}", sent, happened, different, facts)


def preempted(kind, tries, seed, folder):
    """The same with SIGTERM, which has to be answered with exit code 75."""
    sent, different, facts = _signalled(kind, tries, seed, folder, signal.SIGTERM, 75)
    happened = f"exit code 75; started again: bit for bit what an uninterrupted {kind} gives"
    return Row(f"SIGTERM at a random moment of a {kind}", sent, happened, different, facts)


def _signalled(kind, tries, seed, folder, number, expected):
    work, arrays, progress = KINDS[kind]
    whole, seconds, of_work = _uninterrupted(work, arrays, folder / "whole")
    random, sent, different, reached = np.random.default_rng(seed), 0, 0, []
    for turn in itertools.count():
        if sent >= tries:
            break
        place = folder / f"turn_{turn}"  # a fresh one also where the last work ended before its first signal
        place.mkdir()
        for _ in range(min(IN_A_ROW, tries - sent)):
            child = Child(work, place)
            at_work = random.uniform() < AT_WORK
            child.wait_for("begun" if at_work else "ready")
            child.signal_after(random.uniform(0, of_work if at_work else seconds), number)
            if (code := child.end()) == 0:  # it was faster than the signal
                break
            assert code == expected, code
            sent += 1
            reached.append(round(progress(place), 3))
        assert Child(work, place).end() == 0
        different += arrays(place) != whole
    return sent, different, {"seconds_uninterrupted": round(seconds, 2), "done_at_the_signal": reached}


def _uninterrupted(work, arrays, folder):
    """What the work makes, how long it takes, and how long without what comes before its first chunk."""
    folder.mkdir()
    child = Child(work, folder)
    ready, begun = child.wait_for("ready"), child.wait_for("begun")
    assert child.end() == 0
    return arrays(folder), time.monotonic() - ready, time.monotonic() - begun


def _drawn(folder):
    """Share of the draws that are in the store."""
    if not (folder / "sweep").exists():
        return 0.0
    return float(llcjax.open_sweep(folder / "sweep")["num_draws_done"].values.mean()) / SWEEP.num_draws


def _trained(folder):
    """Share of the snapshots that are saved; 1 once their bank is."""
    if (folder / "bank" / "bank.json").exists():
        return 1.0
    return len(list((folder / "training").glob("segment_*.json"))) / len(TRAIN.snapshot_steps())


KINDS = {"sweep": (sweep_into, swept_arrays, _drawn), "training": (train_into, trained_arrays, _trained)}
