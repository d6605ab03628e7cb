"""Tables and figures over all parts of the language experiment, small enough to commit."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from llcjax.pipelines.experiment_results import (
    Found,
    Row,
    all_stages,
    dataset_rows,
    llc_rows,
    results,
    stage_rows,
    time_rows,
    verdict_rows,
)
from llcjax.pipelines.experiment_run import ExperimentRun
from llcjax.pipelines.language_config import PUBLISHED_BOUNDARIES
from llcjax.pipelines.language_parts import MAIN
from llcjax.pipelines.language_results import events, falls, targets
from llcjax.pipelines.run_folder import write_rows
from llcjax.plots import plot_curve, plot_metrics, plot_regimes

_OWN_MODELS = (MAIN, "one_layer")


def study_tables(run: ExperimentRun) -> tuple[Path, list[Row]]:
    """Writes `tables/*.csv` and `tables/*.png` from every finished part.

    Returns:
        The folder, and the rows of `targets.csv`: which of the expectations are met.
    """
    folder, found = run.out / "tables", list(results(run))
    met = list(targets(found))
    trained = [one for one in found if one.part in _OWN_MODELS]
    tables: dict[str, list[Row]] = {
        "llc": [row for one in found for row in llc_rows(one)],
        "verdicts": [row for one in found for row in verdict_rows(one)],
        "stages": stage_rows(all_stages(found)),
        "falls": falls(found),
        "targets": met,
        "events": [{"part": one.part, **row} for one in trained for row in events(one.measured.behaviour)],
        "known": [_known(one) for one in trained],
        "times": list(time_rows(run)),
    }
    for one in trained:
        tables[f"metrics_{one.part}"] = dataset_rows(one.measured.behaviour, {}, marks=PUBLISHED_BOUNDARIES)
        if one.measured.repeats is not None:
            tables[f"repeats_{one.part}"] = dataset_rows(one.measured.repeats, {})
    for name, rows in tables.items():
        write_rows(folder / f"{name}.csv", rows)
    _draw(folder, found)
    return folder, met


def _known(one: Found) -> Row:
    """Losses of one model at its end, beside what can be known."""
    last = one.measured.behaviour.isel(checkpoint=-1)
    facts = {} if one.measured.repeats is None else {
        "repeat_loss": float(one.measured.repeats["repeat_loss"][-1]),
        "first_loss": float(one.measured.repeats["first_loss"][-1]),
        **one.measured.repeats.attrs,
    }  # fmt: skip
    facts.pop("fingerprint", None)
    losses = {name: float(last[name]) for name in ("test_loss", "train_loss", "bigram_score")}
    return {"part": one.part, **losses, "bigram_floor": one.measured.behaviour.attrs["bigram_floor"], **facts}


def _draw(folder: Path, found: list[Found]) -> None:
    """Curves of all parts side by side, and of each model its LLC, stages and metrics under the same bands."""
    curves: dict[str, xr.Dataset] = {one.part: one.table.isel(setting=[0]) for one in found}
    if len(curves) > 1:
        plot_regimes(dict(list(curves.items())[:5])).savefig(folder / "parts.png", dpi=110)
    for one in found:
        if one.part in _OWN_MODELS:
            stages = one.stages("gp")
            bands = None if isinstance(stages, str) else stages
            metrics = one.measured.behaviour
            plot_curve(one.table, metrics, bands).savefig(folder / f"curve_{one.part}.png", dpi=110)
            plot_metrics(metrics, bands).savefig(folder / f"metrics_{one.part}.png", dpi=70)
