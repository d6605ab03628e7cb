"""Boundaries and plateaus of a curve, as far as the posterior draws of it are sure of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from llcjax.curves import BAND, CurvePosterior

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
class CriticalPoint:
    """A critical point on the grid, between `left` and `right`, where |slope| is largest on each side."""

    left: int
    bottom: int
    right: int
    turns: bool
    height: float  # how far |slope| rises on the lower side
    agrees: np.ndarray  # (draw,) whether the posterior draw has this critical point
    places: np.ndarray  # (draw,) grid coordinate of the point in each posterior draw, between grid points


def find_plateaus(
    posterior: CurvePosterior, tolerance: float, min_width: float, probability: float
) -> tuple[Plateau, ...]:
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


def critical_points(posterior: CurvePosterior, min_width: float, probability: float) -> list[CriticalPoint]:
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


def _most_doubtful(points: list[CriticalPoint], x: np.ndarray, min_width: float, probability: float) -> int | None:
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


def _point(posterior: CurvePosterior, before: int, here: int, after: int) -> CriticalPoint:
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
    return CriticalPoint(
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


def boundary_at(posterior: CurvePosterior, point: CriticalPoint, plateaus: tuple[Plateau, ...]) -> Boundary:
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
