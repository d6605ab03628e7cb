"""Writes the chunks of a sweep to its store, and keeps count of what was done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from llcjax import processes
from llcjax.job import Job
from llcjax.progress import SweepStats
from llcjax.runs import Recorded
from llcjax.store import SweepStore


def named_arrays(recorded: Any) -> dict[str, Any]:
    """The arrays of a chunk by the names that they have in the store."""
    draw = recorded.draw._asdict()
    moments = recorded.moments
    observed = draw.pop("observed")
    named = {**draw, "full_loss": recorded.full_loss}
    if recorded.langevin is not None:
        named.update(acceptance=recorded.langevin.batch, acceptance_full=recorded.langevin.full)
    if isinstance(observed, dict):
        taken = sorted(set(observed) & {*named, *RESERVED})
        if taken:
            raise ValueError(
                f"observe returns the name {taken[0]!r}, which the sweep uses itself; give it another name."
            )
        named.update(observed)
    else:
        named["observed"] = observed
    if moments is not None:
        named.update({MOMENT + name: leaf for name, leaf in moments._asdict().items()})
    return {name: leaf for name, leaf in named.items() if leaf is not None}


MOMENT = "moment_"
"""What the names of moments begin with; they have blocks of draws in place of draws."""
RESERVED = ("checkpoint", "setting", "component", "chain", "draw", "position", "init_loss", "prior_loss", "acceptance")
"""Names in the store beside those of the draws."""


class Chunk(NamedTuple):
    """One chunk of a launch; the leaves have the leading axis `run`, and still may be on their way from the devices."""

    first_draw: int
    first_nonfinite_step: jax.Array
    recorded: Recorded


def blocks(groups: np.ndarray, num_settings: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of checkpoints and settings that cover the groups in their order, as few as that takes.

    A write costs about a millisecond, whatever it holds.

    Example:
        >>> list(blocks(np.array([1, 2, 3, 4, 5, 6, 9]), 2))  # doctest: +NORMALIZE_WHITESPACE
        [(slice(0, 1, None), slice(1, 2, None)), (slice(1, 3, None), slice(0, 2, None)),
         (slice(3, 4, None), slice(0, 1, None)), (slice(4, 5, None), slice(1, 2, None))]
    """
    for run in np.split(groups, np.flatnonzero(np.diff(groups) != 1) + 1):
        first, left = int(run[0]), len(run)
        while left:
            checkpoint, setting = divmod(first, num_settings)
            whole = left // num_settings if setting == 0 else 0
            width = num_settings if whole else min(num_settings - setting, left)
            height = max(whole, 1)
            yield slice(checkpoint, checkpoint + height), slice(setting, setting + width)
            first, left = first + height * width, left - height * width


class Writer:
    """Writes chunks to the store and keeps count of what was done."""

    def __init__(self, job: Job, store: SweepStore, part: np.ndarray) -> None:
        """Takes a part of the groups, which nobody else may write."""
        self.job, self.store, self.part = job, store, part
        self.on_chunk: Callable[[SweepStats], None] | None = None
        self.done = store.read("num_draws_done").reshape(-1)
        self.started, self.steps = time.monotonic(), 0
        self.wall_before = store.wall_seconds

    def write(self, groups: np.ndarray, chunk: Chunk) -> None:
        """Writes one chunk of a launch: first the draws, then how many there are."""
        config, chains = self.job.config, self.job.config.num_chains
        named = {name: np.asarray(leaf) for name, leaf in named_arrays(chunk.recorded).items()}
        first = chunk.first_draw
        last = min(first + named["loss"].shape[1], self.job.num_recorded)
        nonfinite = np.asarray(chunk.first_nonfinite_step)
        # The surplus of the last chunk is dropped, and what happened there with it.
        nonfinite = np.where(nonfinite > (last - 1) * config.num_steps_between_draws, -1, nonfinite)
        self.done[groups] = last
        start = 0
        for place in blocks(groups, self._shape[1]):
            shape = tuple(part.stop - part.start for part in place)
            rows = slice(start * chains, (start + math.prod(shape)) * chains)
            start += math.prod(shape)
            for name, values in named.items():
                if name.startswith(MOMENT):
                    piece, where = values[rows], first // self.job.draws_per_chunk
                else:
                    piece, where = values[rows, : last - first], slice(first, last)
                self.store.write(name, (*place, slice(None), where), piece.reshape(*shape, chains, *piece.shape[1:]))
            self.store.write("first_nonfinite_step", place, nonfinite[rows].reshape(*shape, chains))
            self.store.write("num_draws_done", place, np.full(shape, last, np.int32))
        self.steps += (last - first) * config.num_steps_between_draws * len(groups) * chains
        self._report(groups, named)

    @property
    def draws_done(self) -> int:
        """Finished draws of one chain of each group of the part, summed."""
        return int(self.done[self.part].sum())

    @property
    def complete(self) -> bool:
        """Whether nothing of the part is missing."""
        return bool((self.done[self.part] >= self.job.num_recorded).all())

    def finish(self) -> None:
        """Notes the time that the sweep has taken so far."""
        if self.steps and processes.is_first():
            self.store.group.attrs["wall_seconds"] = self.wall_before + time.monotonic() - self.started

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.job.bank), len(self.job.settings)

    def _report(self, groups: np.ndarray, named: dict[str, np.ndarray]) -> None:
        if self.on_chunk is None:
            return
        job, chains = self.job, self.job.config.num_chains
        llc = self._llc(groups, named)
        elapsed = max(time.monotonic() - self.started, 1e-9)
        self.on_chunk(
            SweepStats(
                draws_done=self.draws_done * chains,
                total_draws=len(self.part) * chains * job.num_recorded,
                runs_done=int((self.done[self.part] >= job.num_recorded).sum()) * chains,
                num_runs=len(self.part) * chains,
                chain_steps_per_second=self.steps / elapsed,
                llc_low=float(np.min(llc, initial=np.inf)),
                llc_high=float(np.max(llc, initial=-np.inf)),
            )
        )

    def _llc(self, groups: np.ndarray, named: dict[str, np.ndarray]) -> np.ndarray:
        """The finite LLCs of the chains over one chunk."""
        chains, settings = self.job.config.num_chains, self.job.settings
        runs = len(groups) * chains
        if "baseline_loss" in named:
            baseline = named["baseline_loss"][:runs]
        else:
            baseline = np.repeat(self.store.read("init_loss")[groups // len(settings)], chains)[:, None]
        n_beta = np.repeat([settings[s].n_beta for s in groups % len(settings)], chains)
        llc = n_beta * (named["loss"][:runs] - baseline).mean(1)
        return llc[np.isfinite(llc)]
