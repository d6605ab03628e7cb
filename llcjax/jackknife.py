"""Standard errors of statistics of several chains: the jackknife over chains (Efron & Stein 1981)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from llcjax.moments import Sums
from llcjax.types import GROUP


def jackknifed(
    sweep: xr.Dataset, name: str, statistic: Callable[[Sums], np.ndarray], sums: Sums, dims: tuple[str, ...]
) -> xr.Dataset:
    """A statistic of all chains with its standard error.

    Args:
        sweep: where the coordinates come from.
        name: what the statistic is called.
        statistic: a function of the moments of all chains, `(checkpoint, setting, *dims)`.
        sums: the moments of each chain; the statistic is computed again without each of them.
        dims: what its axes are called after checkpoint and setting.

    Returns:
        `name` and `name_stderr`; the error is NaN where fewer than two chains are whole.
    """
    used = sums.count > 0
    leave_out = np.stack([statistic(sums.without(chain)) for chain in range(used.shape[-1])])
    used_first = np.moveaxis(used, -1, 0).reshape(*leave_out.shape[:3], *[1] * (leave_out.ndim - 3))
    number = used_first.sum(0)
    centre = np.where(used_first, leave_out, 0).sum(0) / np.maximum(number, 1)
    squares = np.where(used_first, np.square(leave_out - centre), 0).sum(0)
    error = np.where(number > 1, np.sqrt((number - 1) / np.maximum(number, 1) * squares), np.nan)
    return xr.Dataset(
        {name: ((*GROUP, *dims), statistic(sums)), f"{name}_stderr": ((*GROUP, *dims), error)},
        coords=group_coords(sweep),
    )


def group_coords(sweep: xr.Dataset) -> dict[str, xr.DataArray]:
    """The coordinates of checkpoints and settings."""
    return {str(name): sweep[name] for name in sweep.coords if set(sweep[name].dims) <= set(GROUP)}
