"""Do stages found in different curves agree? Boundaries of each curve beside those of a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llcjax.boundaries import Boundary
from llcjax.stages import Stages, find_stages
from llcjax.types import Curve

LEAST_REACH = 0.5
"""In e-folds of step + 1: a boundary counts as found within this distance, or within both 90% intervals."""


def curves_stages(curves: Mapping[str, Curve], *, method: str = "gp") -> dict[str, Stages | str]:
    """Stages of each curve by the same procedure; the sentence of the problem where a curve has none.

    Args:
        curves: name -> (steps, values, standard errors or None).
        method: "gp" or "paper".
    """
    found: dict[str, Stages | str] = {}
    for name, (steps, values, errors) in curves.items():
        finite = np.isfinite(values) & (True if errors is None else np.isfinite(errors))
        try:
            found[name] = find_stages(
                np.asarray(steps)[finite],
                np.asarray(values)[finite],
                errors[finite] if errors is not None and method == "gp" else None,
                method=method,
            )
        except ValueError as error:
            found[name] = str(error)
    return found


def boundary_agreement(
    found: Mapping[str, Stages | str], reference: Sequence[Boundary | float]
) -> list[dict[str, Any]]:
    """One row a curve and boundary of the reference: the nearest boundary of the curve, and whether it is the same.

    A boundary of a curve speaks for the nearest one of the reference alone. `distance` is in e-folds of step + 1,
    positive where it is later; `agrees` is "yes" where it is at most half an e-fold or the 90% intervals overlap.
    `num_boundaries` counts those of the curve, since many boundaries meet any reference by chance; `chance` is the
    share of the log axis that lies within half an e-fold of one of them.

    Args:
        found: what `curves_stages` returns.
        reference: boundaries, or published steps without intervals.
    """
    places = [(one.step, one.lower, one.upper) if isinstance(one, Boundary) else (one, one, one) for one in reference]
    rows = []
    for name, stages in found.items():
        boundaries = () if isinstance(stages, str) else stages.boundaries
        x = np.log1p([one.step for one in boundaries])
        gaps = x[None, :] - np.log1p([step for step, _, _ in places])[:, None]
        # Each boundary of the curve speaks for the nearest place alone.
        free = np.zeros(gaps.shape, bool) if not gaps.size else np.abs(gaps) == np.abs(gaps).min(0)
        for index, (step, lower, upper) in enumerate(places):
            mine = np.flatnonzero(free[index]) if gaps.size else np.array([], int)
            row = {"curve": name, "reference": step, "reference_lower": lower, "reference_upper": upper}
            row |= {"num_boundaries": len(boundaries), "chance": _covered(x, stages)}
            if not mine.size:
                rows.append({**row, "step": "", "lower": "", "upper": "", "distance": "", "agrees": "no"})
                continue
            best = int(mine[np.abs(gaps[index, mine]).argmin()])
            one = boundaries[best]
            ends = (one.lower, one.upper) if np.isfinite(one.lower) else (one.step, one.step)
            same = abs(gaps[index, best]) <= LEAST_REACH or (ends[0] <= upper and lower <= ends[1])
            rows.append(
                {
                    **row,
                    "step": one.step,
                    "lower": one.lower,
                    "upper": one.upper,
                    "distance": float(gaps[index, best]),
                    "agrees": "yes" if same else "no",
                }
            )
    return rows


def _covered(x: np.ndarray, stages: Stages | str) -> float:
    """Share of the log axis within reach of a boundary."""
    if isinstance(stages, str) or not x.size:
        return 0.0
    grid = np.linspace(*np.log1p(stages.fit.step[[0, -1]]), 1001)
    return float(np.mean(np.abs(grid[:, None] - x).min(1) <= LEAST_REACH))
