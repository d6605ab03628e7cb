"""The host's loop: launches one after another, chunk by chunk, resumable between chunks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from llcjax import processes
from llcjax.interrupt import StopRequest
from llcjax.job import AnchorLosses, Job, launch_args
from llcjax.plan import Plan, make_plan, most_runs, padded_runs
from llcjax.program import RUN
from llcjax.progress import SweepProgress, SweepStats
from llcjax.store import SavedState, SweepStore
from llcjax.watchdog import Watchdog
from llcjax.writer import Chunk, Writer


def run_job(
    job: Job,
    store: SweepStore,
    on_chunk: Callable[[SweepStats], None] | None,
    save_every_seconds: float,
    progress: bool,
) -> None:
    """Runs what is missing of this process's part, launch by launch.

    A launch that is missing in part is run again as a whole, because the last digit of a matrix product depends on
    what it is computed with: a sweep that was killed ends with the bits of one that was not. Where it was cut otherwise
    before (other devices, other processes) only what is missing is run.
    """
    part = processes.own_part(job.num_groups)
    if len(part) < job.num_groups and not store.may_be_shared:
        raise ValueError(f"{store.path} was begun by an earlier llcjax; finish it with one process, or sweep again.")
    writer = Writer(job, store, part)
    chains = job.config.num_chains
    total = len(part) * chains * job.num_recorded
    with (
        SweepProgress(total, writer.draws_done * chains, enabled=progress and processes.is_first()) as bar,
        StopRequest() as stop,
        Watchdog("a chunk of draws", "what was drawn is kept") as watchdog,
    ):

        def report(stats: SweepStats) -> None:
            bar.update(stats)
            if on_chunk is not None:
                on_chunk(stats)

        if progress or on_chunk is not None:  # else nobody looks at what a report costs to make
            writer.on_chunk = report
        plan, groups = None, part
        try:
            while (missing := part[writer.done[part] < job.num_recorded]).size:
                if plan is None:
                    plan = plan_launches(job, part)
                    groups = groups if _cut_as_before(store, plan) else missing
                try:
                    for launch in _launches(job, store, plan, groups, writer.done):
                        launch.run(writer, stop, watchdog, save_every_seconds)
                except jax.errors.JaxRuntimeError as error:
                    plan, groups = _narrower(plan, job, error), part[writer.done[part] < job.num_recorded]
                    # A launch that was saved is as wide as the one that did not fit.
                    store.drop_state()
        finally:
            writer.finish()


def _narrower(plan: Plan, job: Job, error: jax.errors.JaxRuntimeError) -> Plan:
    """The plan with half as many groups at once, after the devices ran out of memory; other errors are raised again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    if plan.groups_per_launch == 1:
        raise ValueError(
            f"one checkpoint with {plan.num_chains} chains does not fit the memory of the devices; take fewer chains "
            "or a smaller batch_size. What was drawn is kept."
        ) from error
    narrower = plan.of_groups(-(-plan.groups_per_launch // 2), job.num_devices)
    warnings.warn(
        f"the devices ran out of memory with {plan.runs_per_launch} chains at once; "
        f"the sweep goes on with {narrower.runs_per_launch}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return narrower


def _cut_as_before(store: SweepStore, plan: Plan) -> bool:
    """Whether what is in the store was cut into the same launches; the first process notes how the first time."""
    cut = [jax.process_count(), plan.groups_per_launch]
    if "cut" not in store.group.attrs and processes.is_first():
        store.group.attrs["cut"] = cut
    return store.group.attrs.get("cut", cut) == cut


def _launches(job: Job, store: SweepStore, plan: Plan, groups: np.ndarray, done: np.ndarray) -> Iterator[Launch]:
    """The launches that are left: first the one in flight, then those with groups that were never finished."""
    saved, losses = store.load_state(), AnchorLosses(job)
    if saved is not None and _usable(job, saved, groups, done):
        yield Launch(job, store, plan, saved.groups, losses, saved)
    for launch in job.cuts(groups, plan.groups_per_launch):
        if (done[launch] < job.num_recorded).any():
            width = job.width(int(launch[0]), plan.groups_per_launch)
            yield Launch(job, store, plan.of_groups(width, job.num_devices), launch, losses)


def _usable(job: Job, saved: SavedState, groups: np.ndarray, done: np.ndarray) -> bool:
    """Whether a saved launch is still missing and this process's, and as wide as these devices can run."""
    width, draws = saved.leaves[0].shape[0], done[saved.groups]
    held = bool(np.isin(saved.groups, groups).all()) and saved.draws_done <= int(draws.min()) < job.num_recorded
    return held and width % job.num_devices == 0 and width >= 2 * job.num_devices


def plan_launches(job: Job, groups: np.ndarray) -> Plan:
    """Plans the launches of some groups, measuring memory on the programs that will run."""
    compiled = job.program()
    kinds = [groups] if job.components is None else job.alike(np.arange(len(job.settings)))

    def needed(launch: np.ndarray) -> int:
        num_runs = padded_runs(len(launch) * job.config.num_chains, job.num_devices)
        return compiled.memory_bytes(*launch_args(job, compiled, launch, num_runs))

    def memory(count: int, _: int) -> int:
        return max(needed(kind[: job.width(int(kind[0]), count)]) for kind in kinds)

    return make_plan(
        job.config,
        num_groups=len(groups),
        most_groups=None if job.components is None else max(map(len, kinds)),
        draws_per_chunk=job.draws_per_chunk,
        num_devices=job.num_devices,
        most_runs=job.config.runs_per_launch or most_runs(job.step_work().flops) * job.num_devices,
        memory=memory,
    )


class Launch:
    """Some groups, run together chunk by chunk."""

    def __init__(
        self,
        job: Job,
        store: SweepStore,
        plan: Plan,
        groups: np.ndarray,
        anchor_losses: AnchorLosses,
        saved: SavedState | None = None,
    ) -> None:
        self.store, self.groups, self.plan, self.total = store, groups, plan, job.num_recorded
        self.draws_done = 0 if saved is None else saved.draws_done
        self.compiled = job.program()
        # The last launch is as wide as the others, so that one program serves all.
        padded = np.resize(groups, max(len(groups), plan.groups_per_launch))
        width = plan.runs_per_launch if saved is None else saved.leaves[0].shape[0]
        self.states, *self.args, _ = launch_args(job, self.compiled, padded, width, anchor_losses)
        if saved is not None:
            structure = jax.tree.structure(self.states)
            self.states = self.compiled.put(jax.tree.unflatten(structure, saved.leaves), RUN)

    def run(self, writer: Writer, stop: StopRequest, watchdog: Watchdog, save_every_seconds: float) -> None:
        """Runs all chunks; the host writes one while the devices compute the next."""
        saved_at = time.monotonic()
        pending: Chunk | None = None
        while self.draws_done < self.total and not stop.requested:
            with watchdog.waiting():
                chunk = self._next_chunk()
                jax.block_until_ready(pending)
            if pending is not None:
                writer.write(self.groups, pending)
            pending = chunk
            if time.monotonic() - saved_at >= save_every_seconds or stop.requested:
                with watchdog.waiting():
                    jax.block_until_ready(pending)
                writer.write(self.groups, pending)
                pending, saved_at = None, time.monotonic()
                self._save()
        if pending is not None:
            with watchdog.waiting():
                jax.block_until_ready(pending)
            writer.write(self.groups, pending)
        if self.draws_done >= self.total:
            self.store.drop_state()
        if stop.requested and not writer.complete:
            raise stop.stopped(f"the sweep stopped at {writer.draws_done / (len(writer.part) * self.total):.0%}")

    def _next_chunk(self) -> Chunk:
        """Starts the next chunk; its arrays arrive while the host does other things."""
        first = self.draws_done
        self.states, recorded = self.compiled.advance(self.states, *self.args, self.compiled.put(np.int32(first)))
        # A copy, because the state itself is given to the next chunk.
        chunk = Chunk(first, jnp.copy(self.states.first_nonfinite_step), recorded)
        jax.tree.map(lambda leaf: leaf.copy_to_host_async(), (chunk.first_nonfinite_step, recorded))
        self.draws_done = min(first + self.plan.draws_per_chunk, self.total)
        return chunk

    def _save(self) -> None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.states)]
        self.store.save_state(self.groups, self.draws_done, leaves)
