"""Compares two sweeps array by array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from llcjax.estimators import BLOCK, check_sweep


class Difference(NamedTuple):
    """How far two arrays of one name are apart; NaN equals NaN."""

    name: str
    num_values: int
    num_different: int
    largest: float
    """Largest absolute difference, in the unit of the array; infinite where only one of two values is finite."""
    relative: float
    """The same over the largest finite size of a value in the first array."""


def compare_sweeps(one: xr.Dataset, other: xr.Dataset) -> tuple[Difference, ...]:
    """Compares every array of two sweeps, a block of checkpoints at a time.

    Args:
        one: what `llcjax.sweep` or `llcjax.open_sweep` returns.
        other: the same sweep, made again.

    Returns:
        One difference an array, in the order of their names.

    Raises:
        ValueError: the two hold different arrays, checkpoints, settings or numbers of chains or draws.
    """
    check_sweep(one)
    check_sweep(other)
    if unequal := sorted(set(one.variables) ^ set(other.variables), key=str):
        raise ValueError(f"only one of the two sweeps holds {unequal[0]!r}: they recorded different things.")
    for name in one.coords:
        if not np.array_equal(one[name].values, other[name].values):
            raise ValueError(
                f"the two sweeps differ in {name!r}: they are no sweep of the same checkpoints and settings."
            )
    for name in one.data_vars:
        if (one[name].dims, one[name].shape) != (other[name].dims, other[name].shape):
            raise ValueError(f"the two sweeps hold {name!r} of shape {one[name].shape} and {other[name].shape}.")
    return tuple(_difference(one[name], other[name]) for name in sorted(one.data_vars, key=str))


def _difference(one: xr.DataArray, other: xr.DataArray) -> Difference:
    different, largest, scale = 0, 0.0, 0.0
    for a, b in zip(_parts(one), _parts(other), strict=True):
        unequal = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        different += int(unequal.sum())
        with np.errstate(invalid="ignore"):
            gaps = np.abs(a[unequal].astype(np.float64) - b[unequal].astype(np.float64))
        largest = max(largest, float(np.where(np.isfinite(gaps), gaps, np.inf).max(initial=0)))
        scale = max(scale, float(np.max(np.abs(a), where=np.isfinite(a), initial=0)))
    relative = largest / scale if scale > 0 else (np.inf if largest else 0.0)
    return Difference(str(one.name), one.size, different, largest, float(relative))


def _parts(array: xr.DataArray) -> Iterator[np.ndarray]:
    """The values, as many checkpoints at a time as fit a block."""
    if "checkpoint" not in array.dims:
        yield np.atleast_1d(array.values)
        return
    count = array.sizes["checkpoint"]
    step = max(BLOCK * count // max(array.size, 1), 1)
    for start in range(0, count, step):
        yield array.isel(checkpoint=slice(start, start + step)).values


def comparison_sentence(differences: Sequence[Difference], tolerance: float = 0.0) -> tuple[bool, str]:
    """Whether two sweeps are the same, and the sentence that says so.

    Args:
        differences: what `compare_sweeps` returns.
        tolerance: largest relative difference that passes; 0 asks for the same bits.
    """
    total = sum(one.num_values for one in differences)
    worst = max(differences, key=lambda one: one.relative)
    if worst.num_different == 0:
        return True, f"The same: all {total:,} values of {len(differences)} arrays are equal, bit for bit."
    where = (
        f"the largest difference is {worst.largest:.3g} in {worst.name!r}, {worst.relative:.3g} of its largest value; "
        f"{sum(one.num_different for one in differences):,} of {total:,} values differ"
    )
    if worst.relative <= tolerance:
        return True, f"The same within the tolerance of {tolerance:g}: {where}."
    return False, f"Not the same: {where}, and the tolerance is {tolerance:g}."
