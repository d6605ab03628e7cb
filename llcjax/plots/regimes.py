"""LLC curves of several regimes in one figure: what a curve shows depends on where the sampler was let go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llcjax.plots.axes import set_limits, step_axis
from llcjax.plots.style import COLORS, GREY, INK, legend_below, new_figure, plain
from llcjax.plots.verdicts import OFF_SCALE_VERDICTS, STYLES, mark_off_scale
from llcjax.selection import interval, severity


def plot_regimes(regimes: Mapping[str, xr.Dataset], metrics: xr.Dataset | None = None) -> Figure:
    """Draw the LLC of every regime against the training step, with the loss on a second axis.

    A colour is a regime, the shape of a marker is its verdict, a bar its 95% interval.

    Args:
        regimes: estimates at one setting each, under the name that the legend gives them.
        metrics: where its ``test_loss`` is present it is the loss that is drawn; otherwise the loss at w* of the first
            regime.

    Raises:
        ValueError: there is no regime or there are too many, or one of them has several settings.
    """
    if not 0 < len(regimes) <= len(COLORS):
        raise ValueError(f"regimes has {len(regimes)} curves; give 1 to {len(COLORS)} of them.")
    curves = {name: _one(name, table) for name, table in regimes.items()}
    figure, (axes,) = new_figure(1, 1, height=4.4)
    step_axis(axes, np.concatenate([curve["checkpoint"].values for curve in curves.values()]))
    loss_axes = axes.twinx()
    loss_axes.spines["top"].set_visible(False)
    loss_axes.tick_params(labelsize=9, colors=GREY)
    first = next(iter(curves.values()))
    loss = metrics.sortby("checkpoint")["test_loss"] if metrics is not None and "test_loss" in metrics else None
    label = "loss at w*" if loss is None else "test loss"
    loss = first["init_loss"] if loss is None else loss
    loss_axes.plot(loss["checkpoint"], loss, color=GREY, lw=1.4, ls="--", label=f"{label} (right axis)")
    loss_axes.set_ylabel(label, color=GREY)
    # The LLC in front of the loss.
    axes.set_zorder(loss_axes.get_zorder() + 1)
    axes.patch.set_visible(False)
    for (name, curve), color in zip(curves.items(), COLORS, strict=False):
        _draw_regime(axes, curve, name, color)
    _name_markers(axes, curves)
    steps, values, verdicts = (
        np.concatenate([curve[name].values for curve in curves.values()]) for name in ("checkpoint", "llc", "verdict")
    )
    set_limits(axes, np.r_[0.0, values[~np.isin(verdicts.astype(str), OFF_SCALE_VERDICTS)]], values)
    mark_off_scale(axes, steps, values)
    axes.set(xlabel="training step", ylabel="LLC")
    legend_below(figure, axes, loss_axes, num_columns=4)
    return figure


def _one(name: str, table: xr.Dataset) -> xr.Dataset:
    """The curve of a regime, sorted by training step."""
    count = table.sizes.get("setting", 1)
    if count > 1:
        raise ValueError(f"regimes[{name!r}] has {count} settings; give one of them, as table.isel(setting=0).")
    return (table.isel(setting=0) if "setting" in table.dims else table).sortby("checkpoint")


def _draw_regime(axes: Axes, curve: xr.Dataset, name: str, color: str) -> None:
    steps, values, verdicts = curve["checkpoint"].values, curve["llc"].values, curve["verdict"].values.astype(str)
    lower, upper = interval(curve)
    errors = np.nan_to_num(np.abs(np.stack([values - lower, upper - values])))
    axes.plot(steps, values, color=color, lw=1.2, alpha=0.7, label=plain(name), zorder=2)
    for verdict in sorted(set(verdicts), key=severity):
        here = (verdicts == verdict) & np.isfinite(values)
        style = _marker(verdict, color)
        axes.errorbar(steps[here], values[here], errors[:, here], elinewidth=0.8, capsize=0, **style)


def _marker(verdict: str, color: str) -> dict[str, Any]:
    """Shape and filling of a verdict, in the colour of a regime."""
    marker, _, filled = STYLES.get(verdict, ("o", GREY, True))
    return {"marker": marker, "color": color, "mfc": color if filled else "white", "ls": "", "ms": 4, "zorder": 3}


def _name_markers(axes: Axes, curves: Mapping[str, xr.Dataset]) -> None:
    """Entries of the legend for the verdicts that occur, with how often."""
    names = np.concatenate([curve["verdict"].values.astype(str) for curve in curves.values()])
    for verdict in sorted(set(names), key=severity):
        words = f"{plain(verdict).replace('_', ' ')} ({(names == verdict).sum()})"
        axes.plot([], [], label=words, **_marker(verdict, INK))
