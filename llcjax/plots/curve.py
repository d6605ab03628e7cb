"""The LLC curve: with the loss and the stages, its slope, by position and by hyperparameter setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llcjax.plots.axes import draw_reference_losses, set_limits, step_axis
from llcjax.plots.bands import draw_stages
from llcjax.plots.style import BLUE, GREEN, INK, legend_below, new_figure, ordered_colors, spread
from llcjax.plots.verdicts import SCALE_VERDICTS, draw_estimates, limit_to_trusted
from llcjax.selection import interval, one_setting, setting_label, trusted

if TYPE_CHECKING:
    from llcjax.stages import Stages


def plot_curve(
    estimates: xr.Dataset, metrics: xr.Dataset | None = None, stages: Stages | None = None, *, setting: int = 0
) -> Figure:
    """Draw the LLC with 95% error bars over the loss, under the bands of the stages.

    Args:
        estimates: what ``llcjax.estimates`` returns.
        metrics: where its ``test_loss`` is present it is the loss that is drawn; otherwise the loss at w*.
        stages: bands, boundaries with their 90% intervals and the fitted curve with its band.
        setting: index of the hyperparameter setting.
    """
    curve = one_setting(estimates, setting)
    figure, (llc_axes, loss_axes) = new_figure(2, 1, height=5.6, height_ratios=(2.3, 1), sharex=True)
    step_axis(llc_axes, curve["checkpoint"].values)
    if stages is not None:
        fit = stages.fit
        llc_axes.plot(fit.step, fit.mean, color=INK, lw=1.2, label="fit, 90% band", zorder=2)
        llc_axes.fill_between(fit.step, fit.lower, fit.upper, color=INK, alpha=0.12, lw=0, zorder=1.5)
    draw_estimates(llc_axes, curve)
    limit_to_trusted(llc_axes, curve)
    llc_axes.set_ylabel("LLC")
    _draw_losses(loss_axes, curve, metrics)
    loss_axes.set_xlabel("training step")
    draw_stages(llc_axes, stages, names="full")
    draw_stages(loss_axes, stages)
    legend_below(figure, llc_axes, loss_axes)
    return figure


def _draw_losses(axes: Axes, curve: xr.Dataset, metrics: xr.Dataset | None) -> None:
    """Draw the test loss of the metrics, or else the loss at w*, with its reference losses."""
    if metrics is not None and "test_loss" in metrics:
        loss, label = metrics.sortby("checkpoint")["test_loss"], "test loss"
        attrs = {**curve.attrs, **metrics.attrs}
    else:
        loss, label, attrs = curve["init_loss"], "loss at w*", curve.attrs
    axes.plot(loss["checkpoint"], loss, color=INK, lw=1.4, marker=".", ms=4)
    axes.set_ylabel(label)
    draw_reference_losses(axes, attrs)


def plot_slope(stages: Stages) -> Figure:
    """Draw the slope of the fitted curve, d LLC / d ln(step + 1), with its band, plateaus and boundaries."""
    fit = stages.fit
    figure, (axes,) = new_figure(1, 1, height=3.2)
    step_axis(axes, fit.step)
    axes.axhline(0, color=INK, lw=0.8)
    axes.plot(fit.step, fit.slope, color=BLUE, lw=1.6, label="slope of the fit, 90% band")
    axes.fill_between(fit.step, fit.slope_lower, fit.slope_upper, color=BLUE, alpha=0.22, lw=0)
    for index, plateau in enumerate(stages.plateaus):
        ends = [max(plateau.start, axes.get_xlim()[0]), plateau.end]
        style: dict[str, Any] = {"color": GREEN, "lw": 5, "solid_capstyle": "butt"}
        label = None if index else "plateau"
        axes.plot(ends, [0.97, 0.97], transform=axes.get_xaxis_transform(), label=label, **style)
    axes.set(xlabel="training step", ylabel="d LLC / d ln(step + 1)")
    draw_stages(axes, stages, names="full")
    legend_below(figure, axes)
    return figure


def plot_positions(estimates: xr.Dataset, stages: Stages | None = None, *, setting: int = 0) -> Figure:
    """Draw the LLC of the loss of single positions in the context, at most eight of them.

    Raises:
        ValueError: ``estimates`` has no ``llc_position``.
    """
    if "llc_position" not in estimates:
        raise ValueError("estimates has no 'llc_position': run the sweep with per-position losses recorded")
    curve = one_setting(estimates, setting)
    values = curve["llc_position"].transpose("checkpoint", "position").values
    chosen = spread(values.shape[1])
    figure, (axes,) = new_figure(1, 1, height=3.4)
    step_axis(axes, curve["checkpoint"].values)
    for index, color in zip(chosen, ordered_colors(len(chosen)), strict=True):
        one, label = curve.isel(position=index), f"position {curve['position'].values[index]}"
        half = 1.96 * one["llc_position_stderr"].values if "llc_position_stderr" in one else np.nan
        _draw_line(axes, one["llc_position"], (values[:, index] - half, values[:, index] + half), color, label)
    set_limits(axes, values[trusted(curve, verdicts=SCALE_VERDICTS)][:, chosen].ravel())
    axes.set(xlabel="training step", ylabel="LLC of one position")
    draw_stages(axes, stages, names="full")
    legend_below(figure, axes)
    return figure


def plot_settings(estimates: xr.Dataset, stages: Stages | None = None) -> Figure:
    """Draw the LLC at every hyperparameter setting: what moves with the setting is no property of w*."""
    figure, (axes,) = new_figure(1, 1, height=3.6)
    ordered = estimates.sortby("checkpoint")
    step_axis(axes, ordered["checkpoint"].values)
    for index, color in enumerate(ordered_colors(ordered.sizes["setting"])):
        curve = ordered.isel(setting=index)
        _draw_line(axes, curve["llc"], interval(curve), color, setting_label(curve))
    set_limits(axes, ordered["llc"].values[trusted(ordered, verdicts=SCALE_VERDICTS)])
    axes.set(xlabel="training step", ylabel="LLC")
    draw_stages(axes, stages, names="full")
    legend_below(figure, axes, num_columns=2)
    return figure


def _draw_line(axes: Axes, values: xr.DataArray, band: tuple[np.ndarray, np.ndarray], color: Any, label: str) -> None:
    """Draw one of a family of curves with its 95% band."""
    axes.plot(values["checkpoint"], values, color=color, lw=1.4, marker=".", ms=4, label=label)
    axes.fill_between(values["checkpoint"], *band, color=color, alpha=0.15, lw=0)
