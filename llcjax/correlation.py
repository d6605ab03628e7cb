"""Covariances of the errors of a curve, above all where its checkpoints share the randomness of their chains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llcjax import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveErrors:
    """Standard errors along a curve, with correlations share * exp(-|x_i - x_j| / length) over x = log(step + 1).

    Attributes:
        stderr: (C,) standard error of each point, in the unit of the values.
        share: Correlation of two errors at no distance, from 0 (independent) to below 1.
        length: Distance over which it falls by e, in e-folds of step + 1.
    """

    stderr: np.ndarray
    share: float = 0.0
    length: float = 1.0

    def covariance(self, step: Any) -> np.ndarray:
        """Return the (C, C) covariance at the (C,) training steps."""
        x = np.log1p(np.asarray(step, dtype=np.float64))
        correlation = self.share * np.exp(-np.abs(x[:, None] - x[None, :]) / self.length)
        np.fill_diagonal(correlation, 1.0)
        return self.stderr[:, None] * self.stderr[None, :] * correlation


def error_covariance(step: Any, values_per_chain: Any) -> np.ndarray:
    """Return the (C, C) covariance of `curve_errors`, from the same arguments.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> shared = rng.normal(size=(8, 1)) + 0.1 * rng.normal(size=(8, 6))
        >>> covariance = error_covariance([0, 10, 100, 1000, 10000, 100000], shared)
        >>> bool(covariance[0, 5] > 0.8 * covariance[0, 0])
        True
    """
    return curve_errors(step, values_per_chain).covariance(step)


def curve_errors(step: Any, values_per_chain: Any) -> CurveErrors:
    """Return the errors of a curve whose checkpoints share keys, well conditioned.

    With common keys a chain that is high at one checkpoint is high at the next. A shift of all points changes no
    slope, so a fit that takes such errors as independent gives intervals of differences that are too wide, and
    bands of the level that are too narrow. The sample covariance of K chains has rank K - 1 and cannot be used
    as it is. This estimate keeps the measured standard error of each checkpoint and models the correlation of
    two of them as r * exp(-|dx| / l) (+ 1 - r on the diagonal), x = log(step + 1), with r and l fitted by least
    squares to all pairs of sample correlations.

    Args:
        step: (C,) training steps, increasing.
        values_per_chain: (chain, C) value of each chain at each checkpoint, at least 3 chains.

    Returns:
        Errors of the mean over chains.

    Raises:
        ValueError: For fewer than 3 chains, a shape that does not match, or values that are not finite.
    """
    chains, x = np.asarray(values_per_chain, dtype=np.float64), np.log1p(np.asarray(step, dtype=np.float64))
    if chains.ndim != 2 or chains.shape[1] != x.size or chains.shape[0] < 3:
        raise ValueError(
            f"values_per_chain has shape {chains.shape}; give (chain, checkpoint) with at least 3 chains and "
            f"{x.size} checkpoints."
        )
    if bad := int(np.sum(~np.isfinite(chains))):
        raise ValueError(f"values_per_chain has {bad} NaN or infinite entries; leave out diverged chains.")
    deviations = chains - chains.mean(axis=0)
    norms = np.sqrt(np.sum(deviations**2, axis=0))
    units = deviations / np.where(norms > 0, norms, 1.0)
    stderr = norms / np.sqrt((chains.shape[0] - 1) * chains.shape[0])
    share, length = _fit_correlation(np.abs(x[:, None] - x[None, :]), units.T @ units)
    return CurveErrors(stderr=stderr, share=share, length=length)


def _fit_correlation(distance: np.ndarray, sample: np.ndarray) -> tuple[float, float]:
    """Return share, in [0, 0.999], and length of the model nearest to the sample's (C, C) correlations."""
    pairs = np.triu_indices(distance.shape[0], k=1)
    far, seen = distance[pairs], sample[pairs]
    best = (np.inf, 0.0, 1.0)
    for length in np.geomspace(max(far.min(), 1e-3), 30 * far.max(), 60):
        shape = np.exp(-far / length)
        share = float(np.clip(seen @ shape / (shape @ shape), 0.0, 0.999))
        best = min(best, (float(np.sum((seen - share * shape) ** 2)), share, float(length)))
    return best[1], best[2]


def measured_errors(errors: np.ndarray | None, covariance: Any, order: np.ndarray) -> CurveErrors | np.ndarray | None:
    """Return the measured errors in sorted order, or None where there are none.

    Args:
        errors: (C,) sorted standard errors of independent errors, or None.
        covariance: `CurveErrors` or a (C, C) covariance in the order given by the caller, or None.
        order: (C,) indices that sort it.

    Raises:
        ValueError: If both are given, or the matrix is no covariance of C errors.
    """
    if covariance is None:
        return None if errors is None else CurveErrors(stderr=errors)
    if errors is not None:
        raise ValueError("stderr and error_covariance are both given; give one (the covariance holds both).")
    if isinstance(covariance, CurveErrors):
        if covariance.stderr.shape != order.shape:
            raise ValueError(f"error_covariance is of {covariance.stderr.shape} points; give {order.shape} errors.")
        return replace(covariance, stderr=covariance.stderr[order])
    matrix = checks.reals("error_covariance", covariance)
    if matrix.shape != (order.size, order.size) or not np.all(np.isfinite(matrix)):
        raise ValueError(f"error_covariance has shape {matrix.shape}; give a finite {(order.size,) * 2}.")
    smallest, largest = np.linalg.eigvalsh(matrix)[[0, -1]]
    if smallest < -1e-8 * max(largest, 0.0) or not np.allclose(matrix, matrix.T):
        raise ValueError(f"error_covariance has the eigenvalue {smallest:g}; give a positive matrix.")
    return matrix[np.ix_(order, order)]
