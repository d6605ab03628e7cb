"""What the parts of the regression experiment found beside the numbers of the paper."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from llcjax.estimators import estimates
from llcjax.pipelines.experiment_results import Found
from llcjax.pipelines.regression_analysis import Analyses
from llcjax.pipelines.regression_config import PUBLISHED_BOUNDARIES
from llcjax.selection import one_setting
from llcjax.types import Curve

PAPER_CHANGES = {
    "LR1": (-0.32, 21.4),
    "LR2": (-2.21, 149.0),
    "LR3": (-0.07, -12.3),
    "LR4": (-0.05, -44.1),
    "LR5": (-0.029, 3.56),
}
"""Change of loss and LLC in each stage (arXiv 2402.02364, table 2; its seed 1)."""

PAPER_LOSSES = {40_000: (1.878, 1.900), 126_000: (1.816, 1.842), 318_000: (1.773, 1.802), 500_000: (1.740, 1.763)}
"""Range of the test loss of the paper's five seeds, from the results in its repository."""


def stage_changes(one: Found, setting: int = 0) -> Iterator[dict[str, Any]]:
    """Change of loss and LLC between the paper's boundaries, at the nearest checkpoints, beside the paper's own.

    The error is between chains, of the difference: common keys correlate the two ends.
    """
    curve = one_setting(one.table, setting)
    last = int(one.table["checkpoint"].values[-1])
    ends = [0, *(step for step in PUBLISHED_BOUNDARIES if step < last), last]
    for name, start, end in zip(PAPER_CHANGES, ends[:-1], ends[1:], strict=False):
        places = [int(np.abs(curve["checkpoint"].values - step).argmin()) for step in (start, end)]
        chains = curve["llc_per_chain"].transpose("checkpoint", "chain").values[places]
        change = (chains[1] - chains[0])[np.isfinite(chains).all(0)]
        steps = curve["checkpoint"].values[places]
        losses, paper = one.loss(steps), PAPER_CHANGES[name]
        yield {
            "part": one.part,
            "seed": one.seed,
            "setting": setting,
            "stage": name,
            "start": int(steps[0]),
            "end": int(steps[1]),
            "delta_loss": float(losses[1] - losses[0]),
            "paper_delta_loss": paper[0],
            "delta_llc": float(curve["llc"].values[places[1]] - curve["llc"].values[places[0]]),
            "delta_llc_stderr": float(change.std(ddof=1) / change.size**0.5) if change.size > 1 else float("nan"),
            "paper_delta_llc": paper[1],
        }


def window_rows(seed: int, sweep: xr.Dataset, num_windows: int = 5) -> Iterator[dict[str, Any]]:
    """LLC of each fifth of the draws near the paper's boundaries and at the end: whether chains have arrived."""
    steps, last = sweep["checkpoint"].values, int(sweep["checkpoint"].values[-1])
    marks = [*(step for step in PUBLISHED_BOUNDARIES if step < last), last]
    near = [int(steps[np.abs(steps - mark).argmin()]) for mark in marks]
    some = sweep.isel(setting=[0]).sel(checkpoint=near)
    cuts = list(itertools.pairwise(np.linspace(0, some.sizes["draw"], num_windows + 1).astype(int)))
    tables = [estimates(some.isel(draw=slice(*cut)), num_burnin_steps=0).isel(setting=0) for cut in cuts]
    for index, step in enumerate(near):
        for (start, stop), table in zip(cuts, tables, strict=True):
            found = {name: float(table[name].values[index]) for name in ("llc", "llc_stderr")}
            yield {"seed": seed, "step": step, "first_draw": int(start) + 1, "last_draw": int(stop), **found}


def other_curves(measured: Analyses) -> dict[str, Curve]:
    """Curves beside the LLC in which the same procedure looks for stages."""
    behaviour, paths = measured.behaviour, measured.paths
    steps = behaviour["checkpoint"].values
    curves: dict[str, Curve] = {
        "loss": (steps, behaviour["test_loss"].values, None),
        "weight norm": (steps, behaviour["weight_norm"].values, None),
        "CKA of the last stream": (steps, paths["cka"].values[:, -1], None),
    }
    for component in range(min(2, paths.sizes["component"])):
        curves[f"outputs, PC {component + 1}"] = (steps, paths["output_pc"].values[:, component], None)
        curves[f"hidden activations, PC {component + 1}"] = (steps, paths["hidden_pc"].values[:, component], None)
    if (curvature := measured.curvature) is not None:
        steps = curvature["checkpoint"].values
        trace, error = curvature["hessian_trace"].values, curvature["hessian_trace_stderr"].values
        curves["trace of the Hessian"] = (steps, trace, error)
    return curves


def targets(one: Found) -> Iterator[dict[str, Any]]:
    """The numbers that a replication of the published setting must meet, where the run is long enough to have them."""
    marks = {step: one.near(step) for step in (40_000, 126_000, 320_000, 500_000)}
    if any(mark is None for mark in marks.values()):
        return
    llc = {step: float(mark["llc"].isel(setting=0)) for step, mark in marks.items() if mark is not None}
    curve = one.table["llc"].isel(setting=0)
    peak = float(curve["checkpoint"].values[int(np.nanargmax(curve.values))])
    wanted = [
        ("LLC at 40k", llc[40_000], 167.0, 173.0),
        ("LLC at 126k", llc[126_000], 154.0, 160.0),
        ("fall of the LLC from 126k to 320k", llc[126_000] - llc[320_000], 25.0, 60.0),
        ("step of the largest LLC", peak, 35_000.0, 60_000.0),
    ]
    # On the sequences of the sweep, which nothing was trained on: their number makes the error of a mean small, where
    # on those of the other metrics it is as large as the margin.
    losses = one_setting(one.table, 0)["init_loss"]
    for step, (low, high) in PAPER_LOSSES.items():
        middle = (low + high) / 2
        value = float(losses.sel(checkpoint=step, method="nearest"))
        wanted.append((f"test loss at {step // 1000}k", value, middle - 0.03, middle + 0.03))
    wanted += _curvature_targets(one.measured.curvature)
    for name, value, lower, upper in wanted:
        row = {"seed": one.seed, "target": name, "value": value, "lower": lower, "upper": upper}
        yield {**row, "met": "yes" if lower <= value <= upper else "no"}


def targets_by_seed(met: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a target, with the value of each seed, and how many of them meet it."""
    by_target: dict[str, list[dict[str, Any]]] = {}
    for row in met:
        by_target.setdefault(row["target"], []).append(row)
    return [
        {
            "target": target,
            **{limit: rows[0][limit] for limit in ("lower", "upper")},
            **{f"seed_{row['seed']}": row["value"] for row in rows},
            "met": f"{sum(row['met'] == 'yes' for row in rows)} of {len(rows)}",
        }
        for target, rows in by_target.items()
    ]


def _curvature_targets(curvature: xr.Dataset | None) -> list[tuple[str, float, float, float]]:
    if curvature is None:
        return []
    wanted = []
    at = {step: curvature.sel(checkpoint=step, method="nearest") for step in (40_000, 126_000, 500_000)}
    limits = {40_000: ((1400.0, 2300.0), (150.0, 240.0)), 126_000: ((300.0, 500.0), (20.0, 40.0))}
    for step, (of_trace, of_value) in limits.items():
        where = f"at {step // 1000}k"
        trace, value = at[step]["hessian_trace"], at[step]["eigenvalue"].isel(order=0)
        error = float(at[step]["hessian_trace_stderr"] / trace)
        spread = float(at[step]["eigenvalue_stderr"].isel(order=0) / value)
        wanted += [
            (f"trace of the Hessian {where}", float(trace), *of_trace),
            (f"its relative standard error {where}", error, 0.0, 0.05),
            (f"top eigenvalue {where}", float(value), *of_value),
            (f"its relative standard error over batches {where}", spread, 0.0, 0.05),
        ]
    rise = float(at[500_000]["hessian_trace"] - at[126_000]["hessian_trace"])
    return [*wanted, ("rise of the trace from 126k to 500k", rise, 0.0, float("inf"))]
