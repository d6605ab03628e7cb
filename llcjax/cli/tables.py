"""What the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from rich.console import Console
from rich.table import Table

from llcjax.calibrate import Calibration
from llcjax.comparison import Difference
from llcjax.curve_verdict import curve_verdict
from llcjax.forecast import Forecast
from llcjax.pipelines.experiment_run import ExperimentRun
from llcjax.report.calibration import HEADER, calibration_rows
from llcjax.selection import setting_label, verdict_counts
from llcjax.stages import Stages

_WIDE = 150  # columns that the table of a calibration needs; in 80 its numbers would be cut


def print_calibration(result: Calibration) -> None:
    """The settings of a grid, and the one that is recommended."""
    steps = ", ".join(f"{step:,}" for step in result.table["checkpoint"].values)
    table = Table(title=f"LLC at steps {steps}")
    for column in HEADER:
        table.add_column(column, justify="right")
    for row in calibration_rows(result):
        table.add_row(*row, style="bold" if row[0].endswith("*") else None)
    Console(width=max(Console().width, _WIDE)).print(table)
    print("recommended:" if result.recommended is not None else "no setting is recommended:")
    for reason in result.reasons:
        print(f"  {reason}")


def print_forecast(seen: Forecast, num_seeds: int) -> None:
    """What a sweep will need."""
    table = Table(title="Plan of the sweep" + (f" of the first of {num_seeds} seeds" if num_seeds > 1 else ""))
    table.add_column("what")
    table.add_column("how much")
    for row in seen.rows():
        table.add_row(*row)
    Console().print(table)


def print_part(name: str, run: ExperimentRun) -> None:
    """One part of an experiment, under its name where there are several."""
    if name in run.part_kinds:
        print(f"\npart {name}: {run.part_kinds[name].words}")
    print_reports(run)


def print_tables(run: ExperimentRun) -> None:
    """Writes the tables over all parts, and prints which targets are met."""
    path, targets = run.tables()
    print(f"\ntables: {path.resolve()}")
    for row in targets:
        print(f"  {row['met']:>3}  {row['target']}: {row['value']:.4g} (asked: {row['lower']:g} to {row['upper']:g})")


def print_reports(run: ExperimentRun) -> None:
    """Makes the reports of a run and prints what is in them."""
    for seed, (path, stages, table) in run.report().items():
        print(f"\nseed {seed}")
        print_verdicts(table)
        if stages is not None:
            print_stages(stages, "LLC")
        print(f"report: {path.resolve()}")


def print_verdicts(table: xr.Dataset) -> None:
    """How many estimates got which verdict, and what holds for the whole curve."""
    listed = ", ".join(f"{count} {name}" for name, count in verdict_counts(table).items())
    print(f"verdicts of {table['verdict'].size} estimates: {listed}")
    for setting in range(table.sizes["setting"]):
        curve = table.isel(setting=setting)
        which = f"curve at {setting_label(curve)}" if table.sizes["setting"] > 1 else "curve"
        print("{}: {} - {}".format(which, *curve_verdict(curve)))


def print_components(table: xr.Dataset) -> None:
    """The verdicts, and the LLC of every component at every checkpoint."""
    print_verdicts(table)
    for setting in range(table.sizes["setting"]):
        one = table.isel(setting=setting)
        name = str(one["component"].values) if "component" in table.coords else "all parameters"
        values = ", ".join(
            f"{llc:.3g} +- {error:.2g}" for llc, error in zip(one["llc"].values, one["llc_stderr"].values, strict=True)
        )
        print(f"{name}: LLC {values}")


def print_stages(stages: Stages, value: str) -> None:
    """Stages with their boundaries, and plateaus."""
    table = Table(title=f"Stages of {value} (method {stages.method})")
    for column in (
        "stage",
        "type",
        "start",
        "end",
        "90% interval of the end",
        f"change of {value}",
        "change of loss",
    ):
        table.add_column(column, justify="right")
    for row in stages.table():
        interval = "" if row["end_lower"] != row["end_lower"] else f"{row['end_lower']:,.0f} to {row['end_upper']:,.0f}"
        change = f"{row['delta_value']:+.3g}"
        if row["delta_value_stderr"] == row["delta_value_stderr"]:
            change += f" +- {row['delta_value_stderr']:.2g}"
        loss = "" if row["delta_loss"] is None else f"{row['delta_loss']:+.3g}"
        table.add_row(row["name"], row["kind"], f"{row['start']:,.0f}", f"{row['end']:,.0f}", interval, change, loss)
    Console(soft_wrap=False).print(table)
    for plateau in stages.plateaus:
        print(f"plateau from step {plateau.start:,.0f} to {plateau.end:,.0f} (probability {plateau.probability:.2f})")


def print_differences(differences: Sequence[Difference]) -> None:
    """The arrays of two sweeps, compared."""
    table = Table(title="Arrays of the store and of its rerun")
    for name in ("array", "values", "different", "largest difference", "over the largest value"):
        table.add_column(name, justify="left" if name == "array" else "right")
    for one in differences:
        table.add_row(
            one.name, f"{one.num_values:,}", f"{one.num_different:,}", f"{one.largest:.3g}", f"{one.relative:.3g}"
        )
    Console().print(table)


def print_throughput(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Rows of a benchmark."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("workload", "precision") else "right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(width=max(Console().width, 140)).print(table)


def _cell(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value
