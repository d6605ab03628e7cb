"""Tables and figures over all parts of the language experiment, small enough to commit."""

from __future__ import annotations

from collections.abc import Mapping
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
from llcjax.pipelines.language_parts import CONTROL, LOCAL, LOCAL_PARTS, MAIN
from llcjax.pipelines.language_results import circuit, events, falls, part_of, targets
from llcjax.pipelines.run_folder import write_rows
from llcjax.plots import plot_beside, plot_curve, plot_metrics, plot_regimes
from llcjax.stages import Stages


def study_tables(run: ExperimentRun) -> tuple[Path, list[Row]]:
    """Writes `tables/*.csv` and `tables/*.png` from every finished part.

    Returns:
        The folder, and the rows of `targets.csv`: which of the expectations are met.
    """
    folder, found = run.out / "tables", list(results(run))
    met, stages = list(targets(found)), all_stages(found)
    trained = [one for one in found if one.part in (MAIN, CONTROL)]
    one_layer = part_of(found, CONTROL)
    control = None if one_layer is None else one_layer.measured.behaviour
    tables: dict[str, list[Row]] = {
        "llc": [row for one in found for row in llc_rows(one)],
        "verdicts": [row for one in found for row in verdict_rows(one)],
        "stages": stage_rows(stages),
        "falls": falls(stages),
        "targets": met,
        "events": [
            {"part": one.part, **row}
            for one in trained
            for row in events(one.measured.behaviour, control if one.part == MAIN else None)
        ],
        "known": [_known(one) for one in trained],
        "times": list(time_rows(run)),
    }
    for one in trained:
        tables[f"metrics_{one.part}"] = dataset_rows(one.measured.behaviour, {}, marks=PUBLISHED_BOUNDARIES)
        if one.measured.repeats is not None:
            tables[f"repeats_{one.part}"] = dataset_rows(one.measured.repeats, {})
    for name, rows in tables.items():
        write_rows(folder / f"{name}.csv", rows)
    first = [one for one in found if one.seed == found[0].seed]
    bands = {one.part: stages[one.part, one.seed, 0, "gp"] for one in first}
    _draw(folder, first, {part: None if isinstance(one, str) else one for part, one in bands.items()}, control)
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


def _draw(folder: Path, found: list[Found], bands: Mapping[str, Stages | None], control: xr.Dataset | None) -> None:
    """Curves of one seed side by side, those of local chains apart; each with its stages; metrics under such.

    Metrics of the main model lie under the stages of its local chains where there are such.
    """
    curves: dict[str, dict[str, xr.Dataset]] = {"parts": {}, "local": {}}
    for one in found:
        curves["local" if one.part in LOCAL_PARTS else "parts"][one.part] = one.table.isel(setting=[0])
    for name, some in curves.items():
        if len(some) > 1:
            plot_regimes(some).savefig(folder / f"{name}.png", dpi=110)
    for one in found:
        curve = plot_curve(one.table, one.measured.behaviour, bands[one.part])
        curve.savefig(folder / f"curve_{one.part}.png", dpi=110)
        if one.part == (LOCAL if LOCAL in bands else MAIN):
            panels = circuit(one.measured.behaviour, control)
            plot_beside(one.table, panels, bands[one.part]).savefig(folder / "circuit.png", dpi=110)
        if one.part in (MAIN, CONTROL):
            local = LOCAL if one.part == MAIN and LOCAL in bands else one.part
            metrics = one.measured.behaviour.assign_attrs(chance_name=one.table.attrs["chance_name"])
            plot_metrics(metrics, bands[local]).savefig(folder / f"metrics_{one.part}.png", dpi=70)
