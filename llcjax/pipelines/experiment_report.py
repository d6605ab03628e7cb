"""The report of one swept model, written again only where something that it shows has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from llcjax.config import fingerprint
from llcjax.curve_verdict import loss_copy
from llcjax.estimators import estimates
from llcjax.provenance import provenance
from llcjax.report import write_report
from llcjax.stages import Stages, llc_stages


class SeedReport(NamedTuple):
    """What a report led to."""

    path: Path
    stages: Stages | None
    """None where the curve is too short for stages."""
    estimates: xr.Dataset


def report_seed(folder: Path, sweep: xr.Dataset, measured: Any, calibration: Path, **shown: Any) -> SeedReport:
    """Estimates, stages and `report.html` of the sweep of one seed.

    Args:
        folder: of the report.
        sweep: facts of the finished sweep.
        measured: named tuple of measures beside the LLC, `behaviour` with the variable `test_loss` among them.
        calibration: folder that may hold a calibration, whose page is linked.
        **shown: further arguments of `write_report`.
    """
    table, metrics = estimates(sweep), measured.behaviour
    copied = loss_copy(table.isel(setting=0))
    notes = [] if copied is None else [copied.sentence]
    try:
        stages = llc_stages(table, metrics["test_loss"].sel(checkpoint=table["checkpoint"]).values)
    except ValueError as error:
        stages = None
        notes.append(f"No stages: {error}")
    path, stamp, links = folder / "report.html", folder / "report.fingerprint", _calibration_link(calibration, folder)
    identity = fingerprint(
        sweep.attrs["fingerprint"],
        sweep["num_draws_done"].values.tolist(),
        [one.attrs["fingerprint"] for one in measured if one is not None],
        provenance(),
        notes,
        links,
    )
    if not (path.exists() and stamp.exists() and stamp.read_text() == identity):
        made = {**json.loads(sweep.attrs["provenance"]), "sweep_seconds": round(sweep.attrs["wall_seconds"])}
        write_report(
            folder, sweep=sweep, estimates=table, metrics=metrics, stages=stages, provenance=made, notes=notes,
            links=links, **shown,
        )  # fmt: skip
        stamp.write_text(identity)
    return SeedReport(path, stages, table)


def _calibration_link(calibration: Path, folder: Path) -> dict[str, str]:
    """The page of a calibration, seen from the folder of a report."""
    page = calibration / "calibration.html"
    return {"how the setting was chosen": os.path.relpath(page, folder)} if page.exists() else {}
