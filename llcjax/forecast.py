"""What a sweep will need, before it runs: launches, memory, arithmetic and time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np

from llcjax import show
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.job import Job, launch_args
from llcjax.launch import plan_launches
from llcjax.plan import Plan, memory_limit
from llcjax.sweep import make_job
from llcjax.types import LossFn

PROBE_DRAWS = 3
"""Draws of the short chunk that is timed."""
SHORT = 0.2
"""Seconds below which a chunk is mostly the host's work, so that a whole chunk is timed instead."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The plan of a sweep and what it costs."""

    plan: Plan
    num_runs: int
    """Chains in all: checkpoints x settings x chains."""
    num_devices: int
    steps_per_chain: int
    """Sampler steps, burn-in included."""
    memory_bytes: int
    """Needed by a launch on each device, from its compilation."""
    memory_limit: int | None
    """What may be used there; None where nobody can tell."""
    step_flops: float
    """Floating-point operations of the products of one step of one chain."""
    step_bytes: float | None
    """Read and written by one step of one chain (`llcjax.traffic`); None where the compiler does not say."""
    seconds_per_step: float
    """Time of one step of one chain, measured on a short chunk of a full launch."""
    precision: str

    @property
    def seconds(self) -> float:
        """Predicted time of the whole sweep, without compilation and the losses of the checkpoints."""
        steps = self.plan.num_launches * self.plan.runs_per_launch * self.steps_per_chain
        return steps * self.seconds_per_step

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return show.table(dict(self.rows()))

    def rows(self) -> list[tuple[str, str]]:
        """Names and values to show."""
        plan, limit = self.plan, self.memory_limit
        room = "" if limit is None else f" of {limit / 2**30:.1f} GiB that may be used"
        steps = self.num_runs * self.steps_per_chain
        rows = [
            ("chains", f"{self.num_runs:,} ({plan.num_groups:,} checkpoints and settings x {plan.num_chains})"),
            ("steps", f"{self.steps_per_chain:,} a chain, {steps:,} in all"),
            ("launches", f"{plan.num_launches:,} of {plan.runs_per_launch:,} chains on {self.num_devices} device(s)"),
            ("chunk", f"{plan.draws_per_chunk:,} draws between two writes"),
            ("precision", self.precision),
            ("memory", f"{self.memory_bytes / 2**30:.2f} GiB on each device{room}"),
        ]
        if self.step_flops:
            rate = self.step_flops / self.seconds_per_step / 1e12
            rows.append(("arithmetic", f"{self.step_flops * steps:.3g} FLOP, {rate:.3g} TFLOP/s on the probe"))
        rows.append(("time a chain step", f"{self.seconds_per_step * 1e6:,.3g} us (measured on a short probe)"))
        rows.append(("predicted time", f"{_clock(self.seconds)} without compilation"))
        return rows


def forecast(
    loss_fn: LossFn, bank: CheckpointBank, data: Any, config: SweepConfig, *, repeats: int = 3, **options: Any
) -> Forecast:
    """Plans a sweep and times a few steps of its first launch; nothing is stored.

    Args:
        loss_fn: as for `llcjax.sweep`.
        bank: as for `llcjax.sweep`; only the shapes and the number of checkpoints matter.
        data: as for `llcjax.sweep`.
        config: the sweep.
        repeats: chunks that are timed; the median counts.
        **options: `key`, `mask`, `observe` and `devices` of `llcjax.sweep`.

    Raises:
        ValueError: bad input, as of `llcjax.sweep`.
    """
    job = make_job(loss_fn, bank, data, config, **options)
    plan = plan_launches(job, np.arange(job.num_groups))
    whole = job.program()
    launch = max(job.cuts(np.arange(job.num_groups), plan.groups_per_launch), key=len)
    args = launch_args(job, whole, launch, plan.runs_per_launch)
    memory, moved, work = whole.memory_bytes(*args), whole.step_bytes(*args), job.step_work()
    return Forecast(
        plan=plan,
        num_runs=job.num_groups * config.num_chains,
        num_devices=job.num_devices,
        steps_per_chain=job.num_recorded * config.num_steps_between_draws,
        memory_bytes=memory,
        memory_limit=memory_limit(),
        step_flops=work.flops,
        step_bytes=None if moved is None else moved * job.num_devices / plan.runs_per_launch + work.kernel_bytes,
        seconds_per_step=_probe(job, args, repeats) / plan.runs_per_launch,
        precision=config.precision,
    )


def _probe(job: Job, args: tuple[Any, ...], repeats: int) -> float:
    """Seconds of one step of a launch, warm: the median of some chunks, short ones where those are long enough."""
    states, *rest = args
    for draws in sorted({min(PROBE_DRAWS, job.draws_per_chunk), job.draws_per_chunk}):
        compiled, times = job.program(draws), []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            states, recorded = compiled.advance(states, *rest)
            jax.block_until_ready((states, recorded))
            times.append(time.perf_counter() - start)
        if min(times[1:]) > SHORT:
            break
    return statistics.median(times[1:]) / (draws * job.config.num_steps_between_draws)


def _clock(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.3g} s" if seconds < 100 else f"{minutes:.3g} min" if minutes < 100 else f"{minutes / 60:.3g} h"
