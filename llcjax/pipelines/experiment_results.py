"""What the parts of an experiment found, read back from their folders, as rows of tables over all of them."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from llcjax.estimators import estimates
from llcjax.pipelines.experiment_config import selected_steps
from llcjax.pipelines.experiment_run import ExperimentRun
from llcjax.selection import checkpoint_columns, checkpoint_variables, one_setting, verdict_counts
from llcjax.stages import Stages, llc_stages
from llcjax.verdicts import FREE, free_share

Row = dict[str, Any]
StageKey = tuple[str, int, int, str]
"""Part, seed, setting and method."""
NUM_STEPS = 40
"""Checkpoints of the tables of metrics, so that they stay small."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One part and seed: estimates of its sweep and measures of its models."""

    part: str
    seed: int
    table: xr.Dataset
    measured: Any
    """The named tuple of `ExperimentRun.analyses`."""

    def loss(self, steps: np.ndarray) -> np.ndarray:
        """Test loss at checkpoints."""
        return self.measured.behaviour["test_loss"].sel(checkpoint=steps).values

    def stages(self, method: str, setting: int = 0) -> Stages | str:
        """Stages of the LLC curve, or the sentence that says why there are none."""
        try:
            return llc_stages(self.table, self.loss(self.table["checkpoint"].values), setting=setting, method=method)
        except ValueError as error:
            return str(error)

    def near(self, step: int) -> xr.Dataset | None:
        """The estimates nearest to a step, or None where no checkpoint lies within a tenth of it."""
        steps = self.table["checkpoint"].values
        index = int(np.abs(steps - step).argmin())
        return None if abs(steps[index] - step) > 0.1 * step else self.table.isel(checkpoint=index)


def results(run: ExperimentRun) -> Iterator[Found]:
    """Every part and seed whose sweep is finished, in order; measures that are missing are made."""
    for name, part in run.parts().items():
        for seed, bank, facts in part.finished():
            table = estimates(facts).assign_attrs(chance_name=run.chance_name)
            yield Found(part=name, seed=seed, table=table, measured=part.analyses(seed, bank))


def all_stages(found: list[Found]) -> dict[StageKey, Stages | str]:
    """Stages of every curve by both methods, or the sentence that says why there are none."""
    return {
        (one.part, one.seed, setting, method): one.stages(method, setting)
        for one in found
        for setting in range(one.table.sizes["setting"])
        for method in ("gp", "paper")
    }


def key_names(key: StageKey) -> Row:
    """Columns that name a curve."""
    return dict(zip(("part", "seed", "setting", "method"), key, strict=True))


def verdict_rows(one: Found) -> Iterator[Row]:
    """One row a setting: its verdicts, its largest R-hat, and how many checkpoints' chains rose above chance.

    `held_by_prior` counts the trained checkpoints whose chains rise as draws from the localisation prior alone do; NaN
    where no such draws were made.
    """
    for curve, names in _curves(one):
        counts = verdict_counts(curve)
        others = "; ".join(f"{count} {name}" for name, count in counts.items() if name != "ok")
        chance = one.table.attrs["chance"]
        rose = (curve["mean_loss"].values > chance) & (curve["init_loss"].values < chance)
        yield {
            **names,
            "checkpoints": curve.sizes["checkpoint"],
            "ok": counts.get("ok", 0),
            "others": others or "none",
            "largest_rhat": float(curve["rhat"].max()),
            "largest_mean_loss": float(curve["mean_loss"].max()),
            "chance": chance,
            "above_chance": int(rose.sum()),
            "held_by_prior": int((free_share(curve) >= FREE).sum()) if "prior_loss" in curve else math.nan,
        }


def _curves(one: Found) -> Iterator[tuple[xr.Dataset, Row]]:
    """The estimates at each setting, and the columns that name them."""
    for setting in range(one.table.sizes["setting"]):
        curve = one_setting(one.table, setting)
        fixed = {name: float(curve[name]) for name in ("n_beta", "localization", "step_size")}
        yield curve, {"part": one.part, "seed": one.seed, **fixed}


def llc_rows(one: Found) -> Iterator[Row]:
    """One row a setting and checkpoint."""
    wanted = ("llc", "llc_stderr", "rhat", "mean_loss", "init_loss", "prior_loss")
    for curve, names in _curves(one):
        for index, step in enumerate(curve["checkpoint"].values):
            numbers = {name: float(curve[name].values[index]) if name in curve else math.nan for name in wanted}
            verdict = str(curve["verdict"].values[index])
            yield {**names, "step": int(step), **numbers, "verdict": verdict}


def stage_rows(by_method: Mapping[StageKey, Stages | str]) -> list[Row]:
    """Stages of every curve that has some."""
    return [
        {**key_names(key), **row}
        for key, stages in by_method.items()
        if not isinstance(stages, str)
        for row in stages.table()
    ]


def time_rows(run: ExperimentRun) -> Iterator[Row]:
    """Seconds of every step of every part."""
    for name, part in run.parts().items():
        path = part.out / "times.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                yield from ({"part": name, **row} for row in csv.DictReader(file))


def dataset_rows(
    dataset: xr.Dataset, names: Row, count: int | None = NUM_STEPS, marks: Sequence[int] = ()
) -> list[Row]:
    """Columns of a dataset at some of its checkpoints, after the names."""
    some = dataset.sel(checkpoint=selected_steps(dataset["checkpoint"].values, count, marks))
    columns = {
        f"{variable.name}[{label}]" if label else str(variable.name): values
        for variable in checkpoint_variables(some)
        for label, values in checkpoint_columns(variable)
    }
    steps = some["checkpoint"].values
    return [
        {**names, "step": int(step), **{name: short(values[index]) for name, values in columns.items()}}
        for index, step in enumerate(steps)
    ]


def short(value: Any) -> str:
    """A number with four digits."""
    return f"{float(value):.4g}"
