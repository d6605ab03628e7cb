"""Curvature of the loss under the LLC: trace and top eigenvalues of the Hessian, in the bands of the stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr
from matplotlib.figure import Figure

from llcjax.plots.axes import step_axis
from llcjax.plots.bands import draw_stages
from llcjax.plots.style import INK, legend_below, new_figure, ordered_colors
from llcjax.plots.verdicts import draw_estimates, limit_to_trusted
from llcjax.selection import one_setting

if TYPE_CHECKING:
    from llcjax.stages import Stages


def plot_curvature(
    estimates: xr.Dataset, curvature: xr.Dataset, stages: Stages | None = None, *, setting: int = 0
) -> Figure:
    """Draw the LLC, the trace of the Hessian and its top eigenvalues over one another, with 95% error bars.

    Args:
        estimates: what ``llcjax.estimates`` returns.
        curvature: what ``llcjax.curvature.curvature`` returns.
        stages: of the LLC; their bands are behind all three.
        setting: index of the hyperparameter setting.
    """
    curve, curvature = one_setting(estimates, setting), curvature.sortby("checkpoint")
    figure, panels = new_figure(3, 1, height=7.0, height_ratios=(1.5, 1, 1), sharex=True)
    llc_axes, trace_axes, value_axes = panels
    steps = curvature["checkpoint"].values
    step_axis(llc_axes, curve["checkpoint"].values)
    draw_estimates(llc_axes, curve)
    limit_to_trusted(llc_axes, curve)
    llc_axes.set_ylabel("LLC")
    style = {"fmt": ".-", "lw": 1.2, "ms": 4, "capsize": 2}
    error = 1.96 * curvature["hessian_trace_stderr"].values
    trace_axes.errorbar(steps, curvature["hessian_trace"].values, error, color=INK, label="trace", **style)
    trace_axes.set_ylabel("trace of the Hessian")
    for order, color in zip(curvature["order"].values, ordered_colors(curvature.sizes["order"]), strict=True):
        one = curvature.sel(order=order)
        label = f"eigenvalue {order}"
        error = 1.96 * one["eigenvalue_stderr"].values
        value_axes.errorbar(steps, one["eigenvalue"].values, error, color=color, label=label, **style)
    value_axes.set(ylabel="top eigenvalues", xlabel="training step")
    for axes in panels:
        draw_stages(axes, stages, names="full" if axes is llc_axes else "")
    legend_below(figure, *panels)
    return figure
