"""Means and covariances of two observables within each chain of a sweep, from stored draws or from streamed blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from llcjax.estimators import kept_draws
from llcjax.observables import PROBE
from llcjax.types import CHAIN, DRAW


class Sums(NamedTuple):
    """Moments of two vectors of observables a and b; leading axes `(checkpoint, setting, chain)`, then without chain.

    Chains that broke count 0 draws.
    """

    count: np.ndarray
    mean_a: np.ndarray
    mean_b: np.ndarray
    scatter: np.ndarray
    """Sum of products of the deviations of a and b, `(..., a, b)`."""
    squares_a: np.ndarray
    """Sum of squares of the deviations of a."""
    squares_b: np.ndarray

    def joined(self) -> Sums:
        """Moments over all chains together (Chan, Golub & LeVeque 1979)."""
        weight = self.count[..., None] / np.maximum(self.count.sum(-1, keepdims=True), 1)[..., None]
        mean_a, mean_b = (weight * self.mean_a).sum(-2), (weight * self.mean_b).sum(-2)
        root = np.sqrt(self.count)[..., None]
        gap_a, gap_b = root * (self.mean_a - mean_a[..., None, :]), root * (self.mean_b - mean_b[..., None, :])
        return Sums(
            self.count.sum(-1),
            mean_a,
            mean_b,
            self.scatter.sum(-3) + np.einsum("...ca,...cb->...ab", gap_a, gap_b),
            self.squares_a.sum(-2) + np.square(gap_a).sum(-2),
            self.squares_b.sum(-2) + np.square(gap_b).sum(-2),
        )

    def without(self, chain: int) -> Sums:
        """The moments of all chains but one."""
        count = self.count.copy()
        count[..., chain] = 0
        return self._replace(
            count=count,
            scatter=_zeroed(self.scatter, chain, 3),
            squares_a=_zeroed(self.squares_a, chain, 2),
            squares_b=_zeroed(self.squares_b, chain, 2),
        )

    @property
    def covariance(self) -> np.ndarray:
        """Covariances, `(..., a, b)`."""
        with np.errstate(all="ignore"):
            return self.scatter / np.where(self.count > 1, self.count - 1, np.nan)[..., None, None]

    def of(self, correlation: bool) -> np.ndarray:
        """Correlations or covariances."""
        return self.correlation if correlation else self.covariance

    @property
    def correlation(self) -> np.ndarray:
        """Correlations, `(..., a, b)`; NaN where something does not vary."""
        with np.errstate(all="ignore"):
            return self.scatter / np.sqrt(self.squares_a[..., :, None] * self.squares_b[..., None, :])


def _zeroed(values: np.ndarray, chain: int, axis_from_end: int) -> np.ndarray:
    moved = np.moveaxis(values.copy(), -axis_from_end, 0)
    moved[chain] = 0
    return np.moveaxis(moved, 0, -axis_from_end)


def _variable(sweep: xr.Dataset, name: str) -> str | None:
    return next((found for found in (PROBE + name, name) if found in sweep), None)


def _stored(sweep: xr.Dataset, name: str) -> None:
    features = [entry[0] for entry in sweep.attrs.get("features", [])]
    if _variable(sweep, name) is None and not {name, PROBE + name} & set(features):
        held = sorted({*(str(n).removeprefix(PROBE) for n in sweep if str(n).startswith(PROBE)), *features})
        raise ValueError(f"the sweep recorded no {name!r}; it has: {', '.join(held) or 'no probes'}. Give it as probe.")


def chain_sums(sweep: xr.Dataset, a: str, b: str, num_burnin_steps: int | None) -> Sums:
    """Moments of each chain, from stored draws or from streamed blocks.

    Args:
        sweep: a sweep with probes or observables.
        a: name of the first.
        b: name of the second.
        num_burnin_steps: sampler steps to leave out; None takes what the sweep was made with.

    Raises:
        ValueError: a name that was not recorded, or covariances that were not.
    """
    for name in (a, b):
        _stored(sweep, name)
    usable = sweep["first_nonfinite_step"].transpose(*CHAIN).values < 0
    if _variable(sweep, a) is not None and _variable(sweep, b) is not None:
        kept = kept_draws(sweep, num_burnin_steps)
        first, second = (_draws(sweep, str(_variable(sweep, name)), kept) for name in (a, b))
        return _cleared(_sums_of_draws(first, second), usable)
    return _cleared(_sums_of_blocks(sweep, a, b, num_burnin_steps), usable)


def _draws(sweep: xr.Dataset, name: str, kept: np.ndarray) -> np.ndarray:
    """Draws of a variable as `(checkpoint, setting, chain, draw, feature)`."""
    part = sweep[name].isel(draw=kept)
    rest = [dim for dim in part.dims if dim not in DRAW]
    values = part.transpose(*DRAW, *rest).values.astype(np.float64)
    return values.reshape(*values.shape[:4], -1)


def _sums_of_draws(first: np.ndarray, second: np.ndarray) -> Sums:
    mean_a, mean_b = first.mean(-2), second.mean(-2)
    gap_a, gap_b = first - mean_a[..., None, :], second - mean_b[..., None, :]
    return Sums(
        np.full(first.shape[:3], float(first.shape[3])),
        mean_a,
        mean_b,
        np.swapaxes(gap_a, -1, -2) @ gap_b,
        np.square(gap_a).sum(-2),
        np.square(gap_b).sum(-2),
    )


def _sums_of_blocks(sweep: xr.Dataset, a: str, b: str, num_burnin_steps: int | None) -> Sums:
    """Moments of each chain from the blocks after the burn-in."""
    if "moment_scatter" not in sweep:
        raise ValueError("the sweep kept means alone; sweep with reduce='covariance' (or 'none').")
    burnin = int(sweep.attrs["num_burnin_steps"]) if num_burnin_steps is None else num_burnin_steps
    kept = np.flatnonzero(sweep["block"].values >= burnin)
    if not kept.size:
        raise ValueError(f"num_burnin_steps={burnin} leaves no block of draws; choose fewer, or more num_blocks.")
    first, second = (_places(sweep, name) for name in (a, b))
    blocks = sweep.isel(block=kept)
    dims = (*CHAIN, "block")
    count = blocks["moment_count"].transpose(*dims).values.astype(np.float64)
    mean = blocks["moment_mean"].transpose(*dims, ...).values.astype(np.float64)
    scatter = blocks["moment_scatter"].transpose(*dims, ...).values.astype(np.float64)
    diagonal = np.einsum("...ii->...i", scatter)
    per_block = Sums(
        count,
        mean[..., first],
        mean[..., second],
        scatter[..., first[:, None], second[None, :]],
        diagonal[..., first],
        diagonal[..., second],
    )
    return per_block.joined()  # the blocks of a chain join as chains do


def _places(sweep: xr.Dataset, name: str) -> np.ndarray:
    start = 0
    for feature, shape in sweep.attrs["features"]:
        size = int(np.prod(shape))
        if feature in (name, PROBE + name):
            return np.arange(start, start + size)
        start += size
    raise ValueError(f"the sweep reduced no {name!r}.")


def _cleared(sums: Sums, usable: np.ndarray) -> Sums:
    """Chains that broke count nothing."""
    return Sums(
        np.where(usable, sums.count, 0),
        *(np.where(usable.reshape(*usable.shape, *[1] * (v.ndim - 3)), v, 0) for v in sums[1:]),
    )
