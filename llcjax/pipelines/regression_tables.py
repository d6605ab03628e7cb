"""Tables and figures over all parts of the regression experiment, small enough to commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from llcjax.agreement import boundary_agreement, curves_stages
from llcjax.metrics.attention import head_means
from llcjax.pipelines.experiment_config import selected_steps
from llcjax.pipelines.experiment_results import (
    NUM_STEPS,
    Found,
    Row,
    all_stages,
    dataset_rows,
    key_names,
    llc_rows,
    results,
    stage_rows,
    time_rows,
    verdict_rows,
)
from llcjax.pipelines.experiment_run import ExperimentRun
from llcjax.pipelines.regression_config import MARKED_STEPS, PUBLISHED_BOUNDARIES
from llcjax.pipelines.regression_parts import MAIN
from llcjax.pipelines.regression_results import other_curves, stage_changes, targets, targets_by_seed, window_rows
from llcjax.pipelines.run_folder import write_rows
from llcjax.plots import plot_regimes
from llcjax.stages import Stages


def study_tables(run: ExperimentRun) -> tuple[Path, list[Row]]:
    """Writes `tables/*.csv` and `tables/*.png` from every finished part.

    Returns:
        The folder, and the rows of `targets.csv`: which numbers of the paper are met.
    """
    folder = run.out / "tables"
    found = list(results(run))
    main = [one for one in found if one.part == MAIN]
    by_method = all_stages(found)
    met = [row for one in main for row in targets(one)]
    tables: dict[str, list[Row]] = {
        "llc": [row for one in found for row in llc_rows(one)],
        "verdicts": [row for one in found for row in verdict_rows(one)],
        "stages": stage_rows(by_method),
        "changes": [row for one in found for s in range(one.table.sizes["setting"]) for row in stage_changes(one, s)],
        "boundaries": [
            {**key_names(key), **row}
            for key, stages in by_method.items()
            for row in boundary_agreement({"LLC": stages}, _published(stages))
        ],
        "seeds": list(_seed_rows(found, by_method)),
        "methods": list(_method_rows(found, by_method)),
        "windows": [row for seed, _, sweep in run.finished() for row in window_rows(seed, sweep)],
        "targets": met,
        "targets_by_seed": targets_by_seed(met),
        "times": list(time_rows(run)),
        **_measure_tables(found),
    }
    for name, rows in tables.items():
        write_rows(folder / f"{name}.csv", rows)
    for name, curves in _figures(found).items():
        if len(curves) > 1:
            plot_regimes(curves).savefig(folder / f"{name}.png", dpi=110)
    return folder, met


def _published(stages: Stages | str) -> list[float]:
    """The published boundaries inside the curve."""
    last = 0.0 if isinstance(stages, str) else float(stages.fit.step[-1])
    return [float(step) for step in PUBLISHED_BOUNDARIES if step < last]


def _seed_rows(found: list[Found], by_method: Mapping[Any, Stages | str]) -> Iterator[Row]:
    """Boundaries of the other seeds beside those of the first, in the same part and at its first setting."""
    for part in dict.fromkeys(one.part for one in found):
        seeds = [one.seed for one in found if one.part == part]
        first = by_method[part, seeds[0], 0, "gp"]
        if not isinstance(first, str):
            others = {f"seed {seed}": by_method[part, seed, 0, "gp"] for seed in seeds[1:]}
            yield from ({"part": part, **row} for row in boundary_agreement(others, first.boundaries))


def _method_rows(found: list[Found], by_method: Mapping[Any, Stages | str]) -> Iterator[Row]:
    """Boundaries of other curves beside those of the LLC, and of the LLC of other parts, for the first seed."""
    if not found:
        return
    seed = found[0].seed
    curves: dict[str, Stages | str] = dict(curves_stages(other_curves(found[0].measured)))
    for part in dict.fromkeys(one.part for one in found if one.seed == seed):
        curves[f"LLC, {part}"] = by_method[part, seed, 0, "gp"]
    shared = {part for part in (MAIN, "calibrated", "relative") if f"LLC, {part}" in curves}
    for part in sorted(shared):
        reference = curves[f"LLC, {part}"]
        if not isinstance(reference, str):
            compared = {name: stages for name, stages in curves.items() if name != f"LLC, {part}"}
            rows = boundary_agreement(compared, reference.boundaries)
            yield from ({"against": part, "seed": seed, **row} for row in rows)


def _measure_tables(found: list[Found]) -> dict[str, list[Row]]:
    """Measures of every model once; structure, attention and paths of the first."""
    models = {(one.seed, _trained_part(one)): one for one in reversed(found)}
    tables: dict[str, list[Row]] = {"behaviour": [], "curvature": []}
    for (seed, part), one in sorted(models.items(), key=lambda item: (item[0][1] != MAIN, item[0][1], item[0][0])):
        tables["behaviour"] += _rows(one.measured.behaviour, {"part": part, "seed": seed})
        if one.measured.curvature is not None:
            tables["curvature"] += _rows(one.measured.curvature, {"part": part, "seed": seed}, None)
    # A finite set of tasks has measures that the others lack.
    names = {name: "" for row in tables["behaviour"] for name in row}
    tables["behaviour"] = [{**names, **row} for row in tables["behaviour"]]
    if found:
        first = found[0].measured
        tables["structure"] = _rows(first.structure, {})
        tables["attention"] = _rows(head_means(first.attention), {})
        tables["attention_tokens"] = _attention_rows(first.attention)
        tables["paths"] = _rows(first.paths, {}, None)
    return tables


def _trained_part(one: Found) -> str:
    """The part that trained the model: settings of the sweep share the models of the first."""
    return MAIN if one.part in (MAIN, "calibrated", "relative") else one.part


def _rows(dataset: xr.Dataset, names: Row, count: int | None = NUM_STEPS) -> list[Row]:
    return dataset_rows(dataset, names, count, MARKED_STEPS)


def _attention_rows(attention: xr.Dataset) -> list[Row]:
    """One row a checkpoint, block, head and token."""
    some = attention.sel(checkpoint=selected_steps(attention["checkpoint"].values, 20, MARKED_STEPS))
    order = ("checkpoint", "block", "head", "token")
    columns = {str(name): some[name].transpose(*order).values for name in sorted(map(str, some.data_vars))}
    shape = next(iter(columns.values())).shape
    return [
        {
            **{name: int(some[name].values[index]) for name, index in zip(order, place, strict=True)},
            **{name: f"{values[place]:.3f}" for name, values in columns.items()},
        }
        for place in np.ndindex(*shape)
    ]


def _figures(found: list[Found]) -> dict[str, dict[str, xr.Dataset]]:
    """Curves that belong in one figure, at the first setting of each part; one seed unless they are compared."""
    curves = {(one.part, one.seed): one.table.isel(setting=[0]) for one in found}
    seed = found[0].seed if found else 0
    settings = {part: curves[part, seed] for part in (MAIN, "calibrated", "relative") if (part, seed) in curves}
    trained = {
        part: curve for (part, s), curve in curves.items() if part not in settings or (part, s) == ("calibrated", seed)
    }
    figures = {"regimes": settings, "trainings": dict(list(trained.items())[:5])}
    for part in (MAIN, "calibrated"):
        figures[f"seeds_{part}"] = {f"seed {s}": curve for (p, s), curve in curves.items() if p == part}
    return {name: dict(list(group.items())[:5]) for name, group in figures.items()}
