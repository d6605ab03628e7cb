"""Essential dynamics: the path of the outputs in the plane of two principal components, with osculating circles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from llcjax.plots.axes import set_limits, short_step
from llcjax.plots.style import BLUE, GREY, INK, ORANGE, RED, legend_below, new_figure

if TYPE_CHECKING:
    from llcjax.stages import Stages


def plot_path(paths: xr.Dataset, stages: Stages | None = None) -> Figure:
    """Draw the first two principal components of the outputs against each other.

    Args:
        paths: what ``llcjax.trajectory.path_metrics`` returns, with at least two components.
        stages: of the LLC; their boundaries are marked on the path.

    Raises:
        ValueError: there is only one component.
    """
    if paths.sizes["component"] < 2:
        raise ValueError("paths has one component: a plane needs two, which needs two checkpoints or more.")
    paths = paths.sortby("checkpoint")
    points, smooth = paths["output_pc"].values[:, :2], paths["output_pc_smooth"].values[:, :2]
    centers = np.stack([paths["output_evolute_x"].values, paths["output_evolute_y"].values], 1)
    figure, (axes,) = new_figure(1, 1, height=6.4)
    axes.plot(*points.T, ".", color=GREY, ms=4, label="checkpoints")
    axes.plot(*smooth.T, color=BLUE, lw=1.8, label="smoothed")
    axes.plot(*centers.T, color=ORANGE, lw=0.8, ls=":", label="centres of the osculating circles")
    steps = paths["checkpoint"].values
    for index in np.flatnonzero(paths["output_vertex"].values):
        radius = float(np.linalg.norm(smooth[index] - centers[index]))
        if np.isfinite(radius) and radius < np.ptp(smooth, 0).max():
            circle = Circle(tuple(centers[index]), radius, fill=False, color=ORANGE, lw=0.8, alpha=0.7)
            axes.add_patch(circle)
            axes.annotate(short_step(float(steps[index])), smooth[index], fontsize=7.5, color=INK)
    if stages is not None and stages.boundaries:
        places = np.log1p([boundary.step for boundary in stages.boundaries])
        marked = np.stack([np.interp(places, np.log1p(steps), column) for column in smooth.T], 1)
        axes.plot(*marked.T, "D", color=RED, ms=6, label="stage boundaries of the LLC")
    explained = paths.attrs.get("output_explained", [np.nan, np.nan])
    axes.set(xlabel=f"PC 1 ({explained[0]:.0%} of the variance)", ylabel=f"PC 2 ({explained[1]:.0%})")
    everything = np.concatenate([points, smooth])
    set_limits(axes, everything[:, 1])
    margin = 0.07 * (np.ptp(everything[:, 0]) or 1.0)
    axes.set_xlim(everything[:, 0].min() - margin, everything[:, 0].max() + margin)
    axes.set_aspect("equal")
    legend_below(figure, axes)
    return figure
