"""Exact expectations of any 1-D or 2-D loss under the local posterior that the samplers target.

n_beta and localisation stay as they are: nothing here is asymptotic. Cells of a grid graded towards the anchor are
split until two Gauss-Legendre rules of different order agree, which follows ridges such as that of w1^2 w2^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# 15 nodes a side give the answer, 9 its error; exp(-_REACH) is what counts as nothing in exp(-U).
_ORDERS = (15, 9)
_REACH = 60.0
_MAX_CELLS = 200_000

PointLoss = Callable[[Float[np.ndarray, "point dimension"]], Float[np.ndarray, " point"]]


class _Cells(NamedTuple):
    """Integrals over cells (rows); each cell has its own scale exp(-floor), so that none underflows."""

    low: np.ndarray
    high: np.ndarray
    floor: np.ndarray
    span: np.ndarray
    sums: np.ndarray
    """Columns: integral of exp(-U), of (L - L*) exp(-U), of |L - L*| exp(-U)."""
    errors: np.ndarray
    """Estimated errors of the first two."""


def quadrature_llc(
    loss: PointLoss,
    anchor: Float[np.ndarray, " dimension"],
    *,
    n_beta: float,
    localization: float,
    weight_decay: float = 0.0,
    box: float | None = None,
    rtol: float = 1e-9,
) -> float:
    """n_beta * (E[L(w)] - L(anchor)) under exp(-U) by adaptive quadrature in float64.

    U(w) = n_beta L(w) + localization/2 |w - anchor|^2 + weight_decay/2 |w|^2, inside the box (`llcjax.posterior`).

    Args:
        loss: L, from points `(point, dimension)` in float64 to losses `(point,)`; numpy or jax in 64 bits.
        anchor: w*, shape `(1,)` or `(2,)`.
        n_beta: examples times inverse temperature.
        localization: gamma.
        weight_decay: precision of a Gaussian prior around 0.
        box: half-width, every |w_i - anchor_i| <= box; None is unbounded.
        rtol: relative accuracy of both integrals.

    Raises:
        ValueError: the posterior is improper, there are more than two dimensions, or `rtol` is out of reach.

    Example:
        >>> crossing = lambda w: (w[:, 0] * w[:, 1]) ** 2
        >>> round(quadrature_llc(crossing, np.zeros(2), n_beta=1e4, localization=1.0), 6)
        0.412337
    """
    anchor = np.asarray(anchor, np.float64)
    if anchor.ndim != 1 or anchor.size not in (1, 2):
        raise ValueError(f"anchor has shape {anchor.shape}; quadrature needs (1,) or (2,).")
    at_anchor = loss(anchor[None])[0]

    def energy(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rise = np.asarray(loss(points), np.float64) - at_anchor
        pull = localization * np.sum((points - anchor) ** 2, 1) + weight_decay * np.sum(points**2 - anchor**2, 1)
        return n_beta * rise + pull / 2, rise

    radius = box if box is not None else _radius(energy, anchor, localization)
    total = _refine(energy, _integrate(energy, _graded_grid(anchor, radius)), rtol)
    return float(n_beta * total[1] / total[0])


def _refine(energy: Callable, cells: _Cells, rtol: float) -> np.ndarray:
    """Splits cells until both integrals are within `rtol`; returns the three sums."""
    while True:
        weight = np.exp(cells.floor.min() - cells.floor)
        total = weight @ cells.sums
        errors = weight[:, None] * cells.errors / np.maximum(total[[0, 2]], np.finfo(float).tiny)
        # A steep cell may hide a minimum between its nodes, up to about a tenth of its span below the lowest.
        hidden = (cells.span > _REACH) & (cells.floor - cells.span / 10 < cells.floor.min() + _REACH)
        if np.all(errors.sum(0) <= rtol) and not hidden.any():
            return total
        split = hidden | np.any(errors > rtol / len(weight), 1)
        if len(weight) + 3 * split.sum() > _MAX_CELLS:
            raise ValueError(f"rtol={rtol:g} was not reached with {_MAX_CELLS} cells; raise rtol or give a box.")
        parts = _integrate(energy, _halves(cells.low[split], cells.high[split]))
        cells = _Cells(*(np.concatenate([old[~split], new]) for old, new in zip(cells, parts, strict=True)))


def _radius(energy: Callable, anchor: np.ndarray, localization: float) -> float:
    """Distance beyond which exp(-U) is nothing: U rises by _REACH on three spheres in a row, each twice the last."""
    angles = np.linspace(0, 2 * np.pi, 1441)[:-1] if anchor.size == 2 else np.array([0.0, np.pi])
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)[:, : anchor.size]
    radius, passed = np.sqrt(2 * _REACH / localization) if localization > 0 else 1.0, 0
    for _ in range(50):
        passed = passed + 1 if energy(anchor + radius * circle)[0].min() >= _REACH * 0.999 else 0
        if passed == 3:
            return float(radius / 4)
        radius *= 2
    raise ValueError(
        f"localization={localization:g} leaves the posterior improper (a direction in which the loss does not grow); "
        "give localization above 0 or a box."
    )


def _graded_grid(anchor: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corners, shape `(cell, dimension)`, of a tensor grid whose cells shrink towards the anchor."""
    steps = radius * 4.0 ** -np.arange(12)[::-1]
    edges = np.concatenate([-steps[::-1], [0.0], steps])
    low = np.meshgrid(*[edges[:-1] + center for center in anchor], indexing="ij")
    high = np.meshgrid(*[edges[1:] + center for center in anchor], indexing="ij")
    return np.stack([axis.ravel() for axis in low], 1), np.stack([axis.ravel() for axis in high], 1)


def _halves(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits every cell in half along every axis."""
    for axis in range(low.shape[1]):
        middle = (low[:, axis] + high[:, axis]) / 2
        upper, lower = low.copy(), high.copy()
        upper[:, axis], lower[:, axis] = middle, middle
        low, high = np.concatenate([low, upper]), np.concatenate([lower, high])
    return low, high


def _integrate(energy: Callable, corners: tuple[np.ndarray, np.ndarray]) -> _Cells:
    """Integrates over every cell with both rules, in pieces that fit in memory."""
    count = max(1, -(-len(corners[0]) // 2000))
    pieces = [
        _rules(energy, low, high)
        for low, high in zip(np.array_split(corners[0], count), np.array_split(corners[1], count), strict=True)
    ]
    return _Cells(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def _rules(energy: Callable, low: np.ndarray, high: np.ndarray) -> _Cells:
    """Both rules on a few cells."""
    center, half = (low + high) / 2, (high - low) / 2
    nodes, weights = zip(*(_rule(order, low.shape[1]) for order in _ORDERS), strict=True)
    evaluated = [energy((center[:, None] + half[:, None] * grid).reshape(-1, low.shape[1])) for grid in nodes]
    values, rises = zip(*([part.reshape(len(low), -1) for part in pair] for pair in evaluated), strict=True)
    floor, integrals = values[0].min(1), []
    for value, rise, weight in zip(values, rises, weights, strict=True):
        density = np.exp(np.minimum(floor[:, None] - value, _REACH)) * weight * np.prod(half, 1)[:, None]
        integrals.append(np.stack([density.sum(1), (density * rise).sum(1), (density * np.abs(rise)).sum(1)], 1))
    errors = np.abs(integrals[0] - integrals[1])[:, :2]
    return _Cells(low, high, floor, np.ptp(values[0], 1), integrals[0], errors)


def _rule(order: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `(node, dimension)` and weights `(node,)` of the tensor Gauss-Legendre rule on [-1, 1]^dimension."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    grid = np.stack(np.meshgrid(*[nodes] * dimension, indexing="ij"), -1).reshape(-1, dimension)
    return grid, np.prod(np.stack(np.meshgrid(*[weights] * dimension, indexing="ij"), -1), -1).ravel()
