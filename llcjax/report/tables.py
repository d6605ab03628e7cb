"""The CSV tables beside a report."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from llcjax.selection import checkpoint_columns, checkpoint_variables, one_setting

if TYPE_CHECKING:
    from llcjax.stages import Stages


def write_tables(
    out_dir: str | Path,
    estimates: xr.Dataset,
    metrics: xr.Dataset | None = None,
    stages: Stages | None = None,
    further: Mapping[str, xr.Dataset] | None = None,
) -> list[Path]:
    """Write ``llc.csv`` and, where there are any, ``stages.csv``, ``metrics.csv`` and ``NAME.csv`` of ``further``."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"llc.csv": _llc_rows(estimates)}
    if stages is not None:
        tables["stages.csv"] = _stage_rows(stages)
    if metrics is not None:
        tables["metrics.csv"] = _metric_rows(metrics)
    tables |= {f"{name}.csv": _metric_rows(measures) for name, measures in (further or {}).items()}
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return [folder / name for name in tables]


def _llc_rows(estimates: xr.Dataset) -> list[list[Any]]:
    settings = [name for name in ("n_beta", "localization", "step_size") if name in estimates.coords]
    wanted = ("llc", "llc_stderr", "rhat", "ess_bulk", "mean_loss", "init_loss", "prior_loss", "verdict")
    names = [name for name in wanted if name in estimates]
    parts = ["component"] if "component" in estimates.coords else []
    rows: list[list[Any]] = [["step", *parts, *settings, *names]]
    for index in range(estimates.sizes["setting"]):
        curve = one_setting(estimates, index)
        fixed = [*([str(curve["component"].item())] if parts else []), *(float(curve[name]) for name in settings)]
        columns = [curve[name].values.tolist() for name in names]
        rows += [[step, *fixed, *cells] for step, *cells in zip(curve["checkpoint"].values, *columns, strict=True)]
    return rows


def _stage_rows(stages: Stages) -> list[list[Any]]:
    table = stages.table()
    return [list(table[0]), *(list(row.values()) for row in table)]


def _metric_rows(metrics: xr.Dataset) -> list[list[Any]]:
    columns = {
        f"{variable.name}[{label}]" if label else str(variable.name): values.tolist()
        for variable in checkpoint_variables(metrics)
        for label, values in checkpoint_columns(variable)
    }
    rows = zip(metrics["checkpoint"].values.tolist(), *columns.values(), strict=True)
    return [["step", *columns], *(list(row) for row in rows)]
