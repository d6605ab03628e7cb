"""Developmental stages of a curve: plateaus, boundaries with intervals, and what changes from one to the
next.

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
from scipy.special import ndtr

from llcjax.curves import (
    BAND,
    CurveFit,
    CurvePosterior,
    check_curve,
    error_covariance,
    fit_curve,
    paper_curve,
    read_curve,
)

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
_PAPER_TOLERANCE = 8.0  # their value for the regression curves; the language model had 0.25
_DIP = 0.75  # a least slope must be below this share of the slopes on both sides
_LEAST_CHANGE = 0.005  # of the curve's range: what the curve must move on each side of a boundary


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """A critical point of the curve that ends one stage and begins the next.

    Attributes:
        step: Its place in training steps: posterior mean in log(step + 1).
        lower: Lower end of the 90% interval of the place (NaN for method "paper").
        upper: Upper end of it.
        kind: "zero_slope" (the curve turns), "plateau" (it rests and goes on in the same direction), or
            "least_slope" (it slows down without coming to rest).
        probability: Posterior probability that there is such a point here (NaN for method "paper").
    """

    step: float
    lower: float
    upper: float
    kind: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """A stretch where the slope is below the tolerance.

    Attributes:
        start: First step of it.
        end: Last step of it.
        probability: Least posterior probability of |slope| < tolerance along it, at least 0.9.
    """

    start: float
    end: float
    probability: float


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

    def table(self) -> list[dict[str, Any]]:
        """Return one row a stage, with the boundary that ends it ("end of the curve" for the last).

        Returns:
            Dictionaries with the fields of `Stage`, `end_lower`, `end_upper`, `end_kind` and
            `end_probability`.
        """
        last = Boundary(
            step=self.stages[-1].end,
            lower=float("nan"),
            upper=float("nan"),
            kind="end of the curve",
            probability=1.0,
        )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """A critical point on the grid, between `left` and `right`, where |slope| is largest on each side."""

    left: int
    bottom: int
    right: int
    turns: bool
    height: float  # how far |slope| rises on the lower side
    agrees: np.ndarray  # (draw,) whether the posterior draw has this critical point
    places: np.ndarray  # (draw,) grid coordinate of the point in each posterior draw, between grid points


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
        error_covariance: (C, C) covariance of the errors where they are correlated along the curve, as common
            keys make them; instead of `stderr`. `llcjax.curves.error_covariance` estimates it from the
            chains.
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
    if method not in ("gp", "paper"):
        raise ValueError(f"method is {method!r}; choose 'gp' or 'paper'.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; give a positive slope per e-fold of step + 1, or None.")
    if not min_width >= 0:
        raise ValueError(f"min_width is {min_width}; give 0 or a positive number of e-folds of step + 1.")
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; give a number between 0 and 1.")
    if num_grid < 50:
        raise ValueError(f"num_grid is {num_grid}; give at least 50 grid points.")
    steps, values, _, losses, _ = check_curve(step, value, stderr, loss)
    if method == "paper":
        return _paper_stages(steps, values, losses, _PAPER_TOLERANCE if tolerance is None else tolerance)
    posterior = fit_curve(
        step,
        value,
        stderr,
        error_covariance=error_covariance,
        num_grid=num_grid,
        num_draws=num_draws,
        seed=seed,
    )
    flat = _RELATIVE_TOLERANCE * float(np.abs(posterior.fit.slope).max()) if tolerance is None else tolerance
    plateaus = _plateaus(posterior, flat, min_width, probability)
    points = _critical_points(posterior, min_width, probability)
    boundaries = tuple(_boundary(posterior, point, plateaus) for point in points)
    return Stages(
        method=method,
        fit=posterior.fit,
        boundaries=boundaries,
        plateaus=plateaus,
        stages=_posterior_stages(posterior, points, boundaries, (steps, losses)),
        tolerance=flat,
    )


def _plateaus(posterior: CurvePosterior, tolerance: float, min_width: float, probability: float) -> tuple[Plateau, ...]:
    """Return the runs of grid points that are flat with enough probability and are wide enough."""
    means, sds = posterior.slope_means, np.maximum(posterior.slope_sds, 1e-300)
    flat = np.mean(ndtr((tolerance - means) / sds) - ndtr((-tolerance - means) / sds), axis=0)
    # A rest needs a movement to rest from: where noise hides every movement, nothing is called a plateau.
    if 1 - flat.min() < probability:
        return ()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (flat >= probability).astype(int), [0]])))
    grid = posterior.fit.step
    return tuple(
        Plateau(start=float(grid[start]), end=float(grid[stop - 1]), probability=float(flat[start:stop].min()))
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
        if posterior.x[stop - 1] - posterior.x[start] >= min_width
    )


def _critical_points(posterior: CurvePosterior, min_width: float, probability: float) -> list[_Point]:
    """Return the critical points that the posterior is sure of.

    Every critical point of the mean slope is a candidate. While one of them is not certain, or too close to
    the next, the least prominent such candidate is taken out, which joins the maxima on its two sides
    (topological persistence, so noise wiggles around one true point end as that one point).
    """
    size = np.abs(posterior.fit.slope)
    turns = posterior.fit.slope[:-1] * posterior.fit.slope[1:] < 0
    dips = np.flatnonzero((size[1:-1] < size[:-2]) & (size[1:-1] <= size[2:])) + 1
    candidates = sorted({*dips.tolist(), *np.flatnonzero(turns[1:-1]).tolist()} - {0})
    while candidates:
        ends = [0, *candidates, size.size - 1]
        points = [_point(posterior, *ends[i : i + 3]) for i in range(len(candidates))]
        doubtful = _most_doubtful(points, posterior.x, min_width, probability)
        if doubtful is None:
            return points
        del candidates[doubtful]
    return []


def _most_doubtful(points: list[_Point], x: np.ndarray, min_width: float, probability: float) -> int | None:
    """Return which point to take out next, or None where all of them can stay."""
    shares = [point.agrees.mean() for point in points]
    weak = [i for i, share in enumerate(shares) if share < probability]
    if not weak:
        near = np.diff([x[point.bottom] for point in points]) < min_width
        weak = [i for pair in np.flatnonzero(near) for i in (pair, pair + 1)]
    if weak:
        return min(weak, key=lambda i: points[i].height)
    # Many candidates give chance many trials, so the whole list must hold with the probability asked for.
    together = np.all([point.agrees for point in points], axis=0).mean()
    return None if together >= probability else int(np.argmin(shares))


def _point(posterior: CurvePosterior, before: int, here: int, after: int) -> _Point:
    """Measure the critical point at grid index `here`, between its neighbors `before` and `after`."""
    slope, size = posterior.fit.slope, np.abs(posterior.fit.slope)
    left = before + int(np.argmax(size[before : here + 1]))
    right = here + int(np.argmax(size[here : after + 1]))
    turns = bool(slope[left] * slope[right] < 0)
    window = slice(left, right + 1)
    bottom = here if turns else left + int(np.argmin(size[window]))
    values, slopes = posterior.value_draws, posterior.slope_draws
    # A draw agrees if its slope has the same sign as the mean at both maxima, and, where the curve goes on in
    # the same direction, dips between them. Fixed places: the minimum over a window would find dips in pure
    # noise.
    agrees = (slopes[:, left] * slope[left] > 0) & (slopes[:, right] * slope[right] > 0)
    if turns:
        places = left + _peaks(np.sign(slope[left]) * values[:, window])
    else:
        places = left + _peaks(-np.abs(slopes[:, window]))
        sides = np.minimum(np.abs(slopes[:, left]), np.abs(slopes[:, right]))
        agrees &= np.abs(slopes[:, bottom]) < _DIP * sides
    least = _LEAST_CHANGE * np.ptp(posterior.fit.mean)
    for neighbor in (before, after):
        agrees &= np.abs(values[:, bottom] - values[:, neighbor]) > least
    return _Point(
        left=left,
        bottom=bottom,
        right=right,
        turns=turns,
        height=float(min(size[left], size[right]) - (0.0 if turns else size[bottom])),
        agrees=agrees,
        places=places,
    )


def _peaks(curves: np.ndarray) -> np.ndarray:
    """Return where each row of (draw, n) curves is largest, refined by a parabola through three points."""
    if curves.shape[1] < 3:
        return np.argmax(curves, axis=1).astype(float)
    middle = np.clip(np.argmax(curves, axis=1), 1, curves.shape[1] - 2)
    before, at, after = (np.take_along_axis(curves, (middle + i)[:, None], axis=1)[:, 0] for i in (-1, 0, 1))
    bend = before - 2 * at + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend < 0)
    return middle + np.clip(shift, -1, 1)


def _boundary(posterior: CurvePosterior, point: _Point, plateaus: tuple[Plateau, ...]) -> Boundary:
    """Return the boundary at a critical point: its kind, and the quantiles of its place over the draws."""
    grid = posterior.fit.step
    tail = (1 - BAND) / 2
    x = np.interp(point.places, np.arange(posterior.x.size), posterior.x)
    lower, upper = np.quantile(x, [tail, 1 - tail])
    # The mean, not the median: on a broad top the draws have their peaks at its two shoulders.
    middle = np.clip(x.mean(), lower, upper)
    rests = any(one.start <= grid[point.right] and one.end >= grid[point.left] for one in plateaus)
    return Boundary(
        step=float(np.expm1(middle)),
        lower=float(np.expm1(lower)),
        upper=float(np.expm1(upper)),
        kind="zero_slope" if point.turns else "plateau" if rests else "least_slope",
        probability=float(point.agrees.mean()),
    )


def _posterior_stages(
    posterior: CurvePosterior,
    points: list[_Point],
    boundaries: tuple[Boundary, ...],
    losses: tuple[np.ndarray, np.ndarray | None],
) -> tuple[Stage, ...]:
    """Return the stages: changes of the mean curve, errors over draws, each draw with its own places."""
    draws, grid = posterior.value_draws, posterior.fit.step
    rows = np.arange(len(draws))
    nearest = [np.rint(point.places).astype(int) for point in points]
    own = np.stack([draws[:, 0], *(draws[rows, place] for place in nearest), draws[:, -1]])
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


def llc_stages(estimates: xr.Dataset, loss: Any = None, *, setting: int = 0, method: str = "gp") -> Stages:
    """Stages of the LLC curve of a sweep, with the errors that its chains measured.

    Checkpoints whose verdict is failed or diverged are left out. From 3 chains on, the covariance of the
    errors along the curve is measured (`error_covariance`), because common keys correlate them.

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
    curve = estimates.isel(setting=setting)
    usable = np.isfinite(curve["llc"].values) & ~np.isin(curve["verdict"].values, ("failed", "diverged"))
    curve = curve.isel(checkpoint=usable)
    losses = curve["init_loss"].values if loss is None else np.asarray(loss)[usable]
    chains = curve["llc_per_chain"].transpose("chain", "checkpoint").values
    chains = chains[np.isfinite(chains).all(1)]
    steps = curve["checkpoint"].values
    if method == "gp" and len(chains) >= 3 and len(steps):
        covariance = error_covariance(steps, chains)
        return find_stages(steps, curve["llc"].values, loss=losses, error_covariance=covariance)
    stderr = curve["llc_stderr"].values
    known = stderr if method == "gp" and np.isfinite(stderr).all() else None
    return find_stages(steps, curve["llc"].values, known, loss=losses, method=method)
