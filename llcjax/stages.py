"""Developmental stages of a curve: what changes from one boundary to the next.

After Hoogland et al. (arXiv 2402.02364): milestones are critical points of the curve over log(step + 1),
stages lie between them, type A where the value rises and type B where it falls. Here a critical point counts
only when the posterior of the curve, given the errors of the points, is sure of it; `method="paper"` gives
the published procedure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from llcjax import checks, show
from llcjax.boundaries import Boundary, CriticalPoint, Plateau, boundary_at, critical_points, find_plateaus
from llcjax.correlation import curve_errors, error_covariance
from llcjax.curve_csv import read_curve
from llcjax.curves import CurveFit, CurvePosterior, check_curve, fit_curve
from llcjax.paper_curve import paper_curve

__all__ = [
    "Boundary",
    "CurveFit",
    "Plateau",
    "Stage",
    "Stages",
    "error_covariance",
    "find_stages",
    "fit_curve",
    "llc_stages",
    "read_curve",
]

_RELATIVE_TOLERANCE = 0.05  # of the largest |slope|: 7.5 on the published curve, whose authors took 8
MOST_POINTS = 10**5
"""Most points of the grid, and most posterior draws."""
_PAPER_TOLERANCE = 8.0  # their value for the regression curves; the language model had 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What happens between two neighboring boundaries.

    Attributes:
        name: "S1", "S2", ... in the order of the steps.
        start: Step at which it starts: a boundary or the first checkpoint.
        end: Step at which it ends: a boundary or the last checkpoint.
        delta_value: Change of the fitted curve, in the unit of the values.
        delta_value_stderr: Its standard error over posterior draws, the uncertain places of the boundaries
            included (NaN for method "paper").
        delta_loss: Change of the loss, interpolated in log(step + 1), or None where no loss is given.
        kind: "A" where the value rises, "B" where it falls, "-" where the change is within 2 standard errors
            of 0.
    """

    name: str
    start: float
    end: float
    delta_value: float
    delta_value_stderr: float
    delta_loss: float | None
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The stages of a curve.

    Attributes:
        method: "gp" or "paper".
        fit: The fitted curve and slope with bands.
        boundaries: Ordered by step; the ends of the curve are not among them.
        plateaus: Ordered by step; they may touch the ends of the curve.
        stages: One more than there are boundaries.
        tolerance: The |slope| below which the curve rests, in values per e-fold of step + 1.
    """

    method: str
    fit: CurveFit
    boundaries: tuple[Boundary, ...]
    plateaus: tuple[Plateau, ...]
    stages: tuple[Stage, ...]
    tolerance: float

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = self.table()
        return show.grid(list(rows[0]), [list(row.values()) for row in rows])

    def table(self) -> list[dict[str, Any]]:
        """Return one row a stage: its fields, and those of the boundary that ends it with `end_` before them."""
        nan, end = float("nan"), self.stages[-1].end
        last = Boundary(step=end, lower=nan, upper=nan, kind="end of the curve", probability=1.0)
        return [
            {
                "name": stage.name,
                "kind": stage.kind,
                "start": stage.start,
                "end": stage.end,
                "end_lower": end.lower,
                "end_upper": end.upper,
                "end_kind": end.kind,
                "end_probability": end.probability,
                "delta_value": stage.delta_value,
                "delta_value_stderr": stage.delta_value_stderr,
                "delta_loss": stage.delta_loss,
            }
            for stage, end in zip(self.stages, (*self.boundaries, last), strict=True)
        ]


def find_stages(
    step: Any,
    value: Any,
    stderr: Any = None,
    *,
    loss: Any = None,
    method: str = "gp",
    error_covariance: Any = None,
    tolerance: float | None = None,
    min_width: float = 0.2,
    probability: float = 0.9,
    num_grid: int = 500,
    num_draws: int = 1024,
    seed: int = 0,
) -> Stages:
    """Divide a curve along training into stages.

    The curve and its slope come from a Gaussian process over log(step + 1) (`llcjax.curves.fit_curve`) that
    knows the measured errors, or fits them. Plateaus: |slope| < tolerance with posterior probability >=
    `probability` over at least `min_width`, on a curve that surely moves elsewhere. Boundaries: places
    between two maxima of |slope| where the slope has a zero or |slope| a minimum below 3/4 of both maxima,
    and the curve moves by 0.5% of its range on each side; at least `probability` of the posterior draws must
    have all of them. More noise widens the posterior and so leaves fewer of both; chance adds a false
    boundary to about 1 - `probability` of curves.

    Args:
        step: (C,) training steps, C >= 5.
        value: (C,) values of any curve.
        stderr: (C,) one standard error each, errors independent; None fits the noise.
        loss: (C,) loss at the same steps, for `Stage.delta_loss`.
        method: "gp", or "paper": the published procedure, without noise or intervals. It lists every local
            minimum of |slope| below `tolerance`; the authors chose their boundaries from such a list by hand.
        error_covariance: The errors where they are correlated along the curve, as common keys make them, instead of
            `stderr`: what `llcjax.correlation.curve_errors` estimates from the chains, or a (C, C) covariance.
        tolerance: Slope that counts as rest, in values per e-fold of step + 1. None: 5% of the largest
            |slope| of the fitted curve; 8 for method "paper".
        min_width: Least width of a plateau and least distance of boundaries, in e-folds of step + 1.
        probability: Posterior probability at which plateaus and boundaries count.
        num_grid: Number of grid points of the posterior.
        num_draws: Number of posterior draws.
        seed: Seed of the draws.

    Returns:
        The stages, with the fit.

    Raises:
        ValueError: If the input is not a curve or an option is out of range.
    """
    _check_options(method, tolerance, min_width, probability, num_grid, num_draws, seed)
    steps, values, _, losses, _ = check_curve(step, value, stderr, loss)
    if method == "paper":
        return _paper_stages(steps, values, losses, _PAPER_TOLERANCE if tolerance is None else tolerance)
    sizes = {"num_grid": num_grid, "num_draws": num_draws, "seed": seed}
    posterior = fit_curve(step, value, stderr, error_covariance=error_covariance, **sizes)
    flat = _RELATIVE_TOLERANCE * float(np.abs(posterior.fit.slope).max()) if tolerance is None else tolerance
    plateaus = find_plateaus(posterior, flat, min_width, probability)
    points = critical_points(posterior, min_width, probability)
    boundaries = tuple(boundary_at(posterior, point, plateaus) for point in points)
    return Stages(
        method=method,
        fit=posterior.fit,
        boundaries=boundaries,
        plateaus=plateaus,
        stages=_posterior_stages(posterior, points, boundaries, (steps, losses)),
        tolerance=flat,
    )


def _check_options(
    method: str, tolerance: float | None, min_width: float, probability: float, num_grid: int, num_draws: int, seed: int
) -> None:
    checks.one_of("method", method, ("gp", "paper"))
    if tolerance is not None:
        checks.number("tolerance", tolerance, "a positive slope per e-fold of step + 1, or None", above=0.0)
    checks.number("min_width", min_width, "0 or a positive number of e-folds of step + 1")
    if not 0 < checks.number("probability", probability, "between 0 and 1") < 1:
        raise ValueError(f"probability={probability:g} must be between 0 and 1.")
    checks.count("num_grid", num_grid, 50, MOST_POINTS)
    checks.count("num_draws", num_draws, 2, MOST_POINTS)
    checks.count("seed", seed)


def _posterior_stages(
    posterior: CurvePosterior,
    points: list[CriticalPoint],
    boundaries: tuple[Boundary, ...],
    losses: tuple[np.ndarray, np.ndarray | None],
) -> tuple[Stage, ...]:
    """Return the stages: changes of the mean curve, errors over draws, each draw with its own places."""
    draws, grid = posterior.value_draws, posterior.fit.step
    nearest = [np.rint(point.places).astype(int) for point in points]
    own = np.stack([draws[:, 0], *(draws[np.arange(len(draws)), place] for place in nearest), draws[:, -1]])
    steps = [float(grid[0]), *(boundary.step for boundary in boundaries), float(grid[-1])]
    errors = np.std(np.diff(own, axis=0), axis=1)
    values = np.interp(np.log1p(steps), posterior.x, posterior.fit.mean)
    return _stages(steps, values, errors, losses)


def _stages(
    steps: list[float],
    values: np.ndarray,
    errors: np.ndarray,
    losses: tuple[np.ndarray, np.ndarray | None],
) -> tuple[Stage, ...]:
    """Return the stages between neighboring `steps`; `errors` may be NaN where they are not known."""
    measured, loss = losses
    at = None if loss is None else np.interp(np.log1p(steps), np.log1p(measured), loss)
    return tuple(
        Stage(
            name=f"S{i + 1}",
            start=steps[i],
            end=steps[i + 1],
            delta_value=float(change),
            delta_value_stderr=float(errors[i]),
            delta_loss=None if at is None else float(at[i + 1] - at[i]),
            kind="-" if abs(change) <= 2 * np.nan_to_num(errors[i]) else "A" if change > 0 else "B",
        )
        for i, change in enumerate(np.diff(values))
    )


def _paper_stages(steps: np.ndarray, values: np.ndarray, losses: np.ndarray | None, tolerance: float) -> Stages:
    """Return every local minimum of |slope| below the tolerance as a boundary, as published."""
    fit, nan = paper_curve(steps, values), float("nan")
    size = np.abs(fit.slope)
    least = (size[1:-1] < size[:-2]) & (size[1:-1] < size[2:]) & (size[1:-1] < tolerance)
    places = [0, *(np.flatnonzero(least) + 1).tolist(), steps.size - 1]
    boundaries = tuple(
        Boundary(step=float(steps[i]), lower=nan, upper=nan, kind="least_slope", probability=nan) for i in places[1:-1]
    )
    ends = [float(steps[i]) for i in places]
    unknown = np.full(len(places) - 1, nan)
    return Stages(
        method="paper",
        fit=fit,
        boundaries=boundaries,
        plateaus=(),
        stages=_stages(ends, fit.mean[places], unknown, (steps, losses)),
        tolerance=tolerance,
    )


def _losses(loss: Any, usable: np.ndarray) -> np.ndarray:
    """The losses of the usable checkpoints."""
    losses = checks.reals("loss", loss)
    if losses.shape != usable.shape:
        raise ValueError(f"loss has shape {losses.shape}; give one for each of the {usable.size} checkpoints.")
    return losses[usable]


def llc_stages(estimates: xr.Dataset, loss: Any = None, *, setting: int = 0, method: str = "gp") -> Stages:
    """Stages of the LLC curve of a sweep, with the errors that its chains measured.

    Checkpoints whose verdict is failed or diverged are left out. From 3 chains on, the covariance of the
    errors along the curve is measured (`curve_errors`), because common keys correlate them.

    Args:
        estimates: What `llcjax.estimates` returns.
        loss: (checkpoint,) loss at the same checkpoints, for `Stage.delta_loss`; None takes the loss at w*.
        setting: Index of the hyperparameter setting.
        method: "gp" or "paper".

    Returns:
        The stages.

    Raises:
        ValueError: If fewer than 5 checkpoints are usable.
    """
    checks.instance("estimates", estimates, xr.Dataset, "what llcjax.estimates returns")
    if lacking := [
        name for name in ("llc", "llc_stderr", "llc_per_chain", "init_loss", "verdict") if name not in estimates
    ]:
        raise ValueError(f"estimates has no {lacking[0]}; give what llcjax.estimates returns.")
    if checks.count("setting", setting) >= estimates.sizes["setting"]:
        raise ValueError(f"setting={setting} is not in the sweep; choose 0 to {estimates.sizes['setting'] - 1}.")
    curve = estimates.isel(setting=setting)
    usable = np.isfinite(curve["llc"].values) & ~np.isin(curve["verdict"].values, ("failed", "diverged"))
    curve = curve.isel(checkpoint=usable)
    losses = curve["init_loss"].values if loss is None else _losses(loss, usable)
    chains = curve["llc_per_chain"].transpose("chain", "checkpoint").values
    chains = chains[np.isfinite(chains).all(1)]
    steps = curve["checkpoint"].values
    if method == "gp" and len(chains) >= 3 and len(steps):
        return find_stages(steps, curve["llc"].values, loss=losses, error_covariance=curve_errors(steps, chains))
    stderr = curve["llc_stderr"].values
    known = stderr if method == "gp" and np.isfinite(stderr).all() else None
    return find_stages(steps, curve["llc"].values, known, loss=losses, method=method)
