"""The LLC over a few measures on a linear axis of training steps, where what comes late has room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from llcjax.plots.axes import short_step
from llcjax.plots.bands import draw_stages
from llcjax.plots.style import COLORS, legend_below, legend_inside, new_figure, plain
from llcjax.plots.verdicts import draw_estimates, limit_to_trusted
from llcjax.selection import one_setting

if TYPE_CHECKING:
    from llcjax.stages import Stages


def plot_beside(
    estimates: xr.Dataset,
    panels: Mapping[str, Mapping[str, xr.DataArray]],
    stages: Stages | None = None,
    *,
    setting: int = 0,
) -> Figure:
    """Draw the LLC with 95% error bars over panels of measures, all under the bands of the stages.

    Args:
        estimates: what ``llcjax.estimates`` returns.
        panels: label of the axis -> name of a line -> its values with the coordinate ``checkpoint``; at most 5 lines.
        stages: bands and boundaries with their 90% intervals.
        setting: index of the hyperparameter setting.

    Raises:
        ValueError: a panel has no line or more than 5.
    """
    for label, lines in panels.items():
        if not 0 < len(lines) <= len(COLORS):
            raise ValueError(f"panels[{label!r}] has {len(lines)} lines; give 1 to {len(COLORS)} of them.")
    curve = one_setting(estimates, setting)
    count = len(panels)
    figure, (llc_axes, *others) = new_figure(
        1 + count, 1, height=3.2 + 1.5 * count, height_ratios=(2.0, *[1.0] * count), sharex=True
    )
    steps = curve["checkpoint"].values
    room = 0.02 * (steps.max() - steps.min() or 1)
    llc_axes.set_xlim(steps.min() - room, steps.max() + room)
    llc_axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short_step(step)))
    draw_estimates(llc_axes, curve)
    limit_to_trusted(llc_axes, curve)
    llc_axes.set_ylabel("LLC")
    draw_stages(llc_axes, stages, names="full")
    for axes, (label, lines) in zip(others, panels.items(), strict=True):
        for (name, values), color in zip(lines.items(), COLORS, strict=False):
            ordered = values.sortby("checkpoint")
            axes.plot(ordered["checkpoint"], ordered, color=color, lw=1.3, label=plain(name))
        axes.set_ylabel(plain(label), fontsize=8.5)
        draw_stages(axes, stages)
        legend_inside(axes)
    figure.axes[-1].set_xlabel("training step")
    legend_below(figure, llc_axes)
    return figure
