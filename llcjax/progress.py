"""Progress bars of training and sweeping."""

from __future__ import annotations

import dataclasses
import sys
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class _Bar:
    """A rich progress bar with one free-form field; silent where it is disabled or there is nothing to draw on."""

    def __init__(self, title: str, total: int, done: int, enabled: bool) -> None:
        # Short enough for a terminal of 80 columns, whose end would be cut.
        self.progress = Progress(
            TextColumn(f"[bold]{title}"),
            BarColumn(bar_width=8),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[facts]}"),
            console=Console(file=sys.stderr),
            disable=not enabled,
            refresh_per_second=4,
        )
        self.task = self.progress.add_task(title, total=total, completed=done, facts="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, done: int, facts: str) -> None:
        """Moves the bar to `done` of its total."""
        self.progress.update(self.task, completed=done, facts=facts)


class TrainProgress(_Bar):
    """Progress of training: steps, loss, steps a second, time left."""

    def __init__(self, num_steps: int, done: int, *, enabled: bool) -> None:
        super().__init__("train", num_steps, done, enabled)

    def update(self, step: int, loss: float | None) -> None:
        """Shows the step that was reached and the mean loss of the last segment."""
        speed = self.progress.tasks[0].speed
        facts = f"step {step:,}" + ("" if loss is None else f"  loss {loss:.4g}")
        self.show(step, facts + (f"  {speed:,.0f} steps/s" if speed else ""))


class BaselineProgress(_Bar):
    """Progress of measuring L(w*) over all examples: checkpoints, time left."""

    def __init__(self, num_checkpoints: int, done: int, *, enabled: bool) -> None:
        super().__init__("L(w*)", num_checkpoints, done, enabled)

    def update(self, done: int) -> None:
        """Shows how many checkpoints have their loss."""
        self.show(done, f"{done}/{self.progress.tasks[0].total:.0f} checkpoints")


class SweepProgress(_Bar):
    """Progress of a sweep in draws of all runs: runs, chain-steps a second, time left, LLC range."""

    def __init__(self, total_draws: int, done: int, *, enabled: bool) -> None:
        super().__init__("sweep", total_draws, done, enabled)

    def update(self, stats: SweepStats) -> None:
        """Shows the state of the sweep after a chunk."""
        self.show(
            stats.draws_done,
            f"{stats.runs_done}/{stats.num_runs} runs  {stats.draws_done:,} draws  "
            f"{stats.chain_steps_per_second:,.0f} steps/s  LLC {stats.llc_low:.3g} to {stats.llc_high:.3g}",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SweepStats:
    """What a sweep reports after each chunk of draws."""

    draws_done: int
    """Draws of all runs so far."""
    total_draws: int
    """Draws of all runs in all."""
    runs_done: int
    """Runs that are complete."""
    num_runs: int
    """Runs in all."""
    chain_steps_per_second: float
    """Sampler steps of all chains a second, since the sweep was started or resumed."""
    llc_low: float
    """Smallest LLC of a chain in the chunk (no unit)."""
    llc_high: float
    """Largest LLC of a chain in the chunk."""
