"""Finds the chunks of a sweep's store that are torn or lost, and has their groups drawn again.

A killed process tears nothing, as every file is moved to its place when it is whole; a machine that loses power, a
full quota or a copy that stopped does. Decoding a chunk checks its checksum.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from llcjax.store import SweepStore, is_complete

_COUNT = "num_draws_done"


class BrokenChunk(NamedTuple):
    """A chunk that cannot be trusted."""

    file: Path
    groups: tuple[slice, slice]
    """Checkpoints and settings whose facts it holds."""


def is_whole(path: Path) -> bool:
    """Whether a folder holds a sweep of which nothing is missing and every chunk can be read."""
    if not is_complete(path):
        return False
    store = SweepStore.reopen(path)
    # Coordinates, and what is measured once a checkpoint; a lost chunk of them would read as NaN.
    small = set(store.group.array_keys()) - {_COUNT, *store.names_of_runs()}
    return all(map(store.holds, small)) and not any(True for _ in broken_chunks(store))


def redo_broken(store: SweepStore) -> None:
    """Forgets the draws of every group with a broken chunk; the sweep then draws them again.

    Only who holds the folder may call it. Files that a killed process left half written are removed.
    """
    if store.path is None:
        return
    for leftover in store.path.rglob("*.partial"):
        leftover.unlink(missing_ok=True)
    broken = list(broken_chunks(store))
    again = np.zeros(store.array(_COUNT).shape, bool)
    for chunk in broken:
        chunk.file.unlink(missing_ok=True)
        again[chunk.groups] = True
    for group in zip(*np.nonzero(again), strict=True):
        store.write(_COUNT, group, np.array(0, np.int32))
    if broken:
        warnings.warn(
            f"{len(broken)} chunks of {store.path} are torn or lost, such as {broken[0].file.relative_to(store.path)}; "
            f"the {again.sum()} of {again.size} pairs of checkpoint and setting that they belong to are drawn again.",
            RuntimeWarning,
            stacklevel=2,
        )


def broken_chunks(store: SweepStore) -> Iterator[BrokenChunk]:
    """Chunks that do not decode, and chunks of counted draws that are not there."""
    assert store.path is not None
    needed = -(-_counts(store) // store.array("loss").chunks[3])
    # Coordinates, and what is measured once a checkpoint, are looked at by `SweepStore.holds`.
    for name in (_COUNT, *store.names_of_runs()):
        array = store.array(name)
        for checkpoint in range(-(-array.shape[0] // array.chunks[0])):
            yield from _broken_in_row(store, name, array, checkpoint, needed)


def _broken_in_row(
    store: SweepStore, name: str, array: Any, checkpoint: int, needed: np.ndarray
) -> Iterator[BrokenChunk]:
    """Broken chunks of one array at one checkpoint (at several, where a chunk holds several)."""
    assert store.path is not None
    readable = _reads(array, (checkpoint,))
    sizes = [range(-(-size // part)) for size, part in zip(array.shape[1:], array.chunks[1:], strict=True)]
    for rest in itertools.product(*sizes):
        place = (checkpoint, *rest)
        file = store.path / name / array.metadata.encode_chunk_key(place)
        groups = tuple(slice(i * part, (i + 1) * part) for i, part in zip(place, array.chunks, strict=True))[:2]
        due = needed[groups].max() > (place[3] if len(place) > 3 else 0)
        # Earlier versions left out chunks that hold the fill value alone.
        lost = due and "checksums" in store.group.attrs and not file.is_file()
        if lost or not (readable or _reads(array, place)):
            yield BrokenChunk(file, (groups[0], groups[1]))


def _reads(array: Any, place: tuple[int, ...]) -> bool:
    """Whether some chunks decode; one that is not there counts as the fill value."""
    where = tuple(slice(i * part, (i + 1) * part) for i, part in zip(place, array.chunks, strict=False))
    try:
        array[where]
    except Exception:  # each codec raises a type of its own
        return False
    return True


def _counts(store: SweepStore) -> Int[np.ndarray, "checkpoint setting"]:
    """Finished draws of each group; 0 where the number itself is broken."""
    array = store.array(_COUNT)
    if _reads(array, ()):
        return store.read(_COUNT)
    counts = np.zeros(array.shape, array.dtype)
    for group in np.ndindex(*array.shape):
        with contextlib.suppress(Exception):
            counts[group] = array[group]
    return counts
