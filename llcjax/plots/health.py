"""Where the sampler went and how well its chains agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from llcjax.plots.axes import chance_name, set_limits, step_axis
from llcjax.plots.bands import draw_stages
from llcjax.plots.style import BLUE, GREEN, INK, RED, legend_below, new_figure, set_title
from llcjax.plots.verdicts import SCALE_VERDICTS, draw_by_verdict
from llcjax.selection import one_setting, trusted
from llcjax.verdicts import RHAT_LIMIT

if TYPE_CHECKING:
    from llcjax.stages import Stages

RHAT_SHOWN = 1.5
"""Larger values of R-hat are drawn here: they all say the same."""


def plot_mean_loss(
    estimates: xr.Dataset, chance: float | None = None, stages: Stages | None = None, *, setting: int = 0
) -> Figure:
    """Draw the mean loss of the draws with the loss at w* and that of the zero predictor.

    Chains that stay near w* have a mean loss near that of w*. Chains at or above ``chance`` have lost what
    the network had learned; their LLC measures how far the loss can rise, not the geometry around w*. Chains at the
    loss of draws from the localisation prior, which is drawn where it was measured, are held by that prior alone.

    Args:
        estimates: what ``llcjax.estimates`` returns.
        chance: loss of the zero predictor; None takes it from the attributes of ``estimates``.
        stages: bands and boundaries, or None.
        setting: index of the hyperparameter setting.
    """
    curve = one_setting(estimates, setting)
    chance = estimates.attrs.get("chance") if chance is None else chance
    figure, (axes,) = new_figure(1, 1, height=3.4)
    steps, drawn, start = (curve[name].values for name in ("checkpoint", "mean_loss", "init_loss"))
    step_axis(axes, steps)
    axes.fill_between(steps, start, drawn, color=INK, alpha=0.1, lw=0)
    axes.plot(steps, drawn, color=BLUE, lw=0.8, label="mean sampled loss, by verdict:")
    draw_by_verdict(axes, steps, drawn, curve["verdict"].values)
    axes.plot(steps, start, color=INK, lw=1.4, marker=".", ms=4, label="loss at w*")
    prior = curve["prior_loss"].values if "prior_loss" in curve else np.empty(0)
    if prior.size:
        axes.plot(steps, prior, color=GREEN, lw=1.2, ls=":", label="draws from the prior alone")
    if chance is not None:
        axes.axhline(chance, color=RED, lw=1.2, ls="--", label=chance_name(estimates.attrs))
    core = drawn[trusted(curve, "mean_loss", SCALE_VERDICTS)]
    set_limits(axes, np.r_[start, core, math.nan if chance is None else chance], prior)
    axes.set(xlabel="training step", ylabel="loss")
    draw_stages(axes, stages, names="full")
    legend_below(figure, axes)
    return figure


def plot_health(estimates: xr.Dataset, stages: Stages | None = None, *, setting: int = 0) -> Figure:
    """Draw R-hat (at most 1.5) and the effective sample size of every checkpoint, marked by verdict."""
    curve = one_setting(estimates, setting)
    figure, grid = new_figure(1, 2, height=2.9)
    steps, verdicts = curve["checkpoint"].values, curve["verdict"].values
    rhat, ess = np.minimum(curve["rhat"].values, RHAT_SHOWN), curve["ess_bulk"].values
    panels = ((rhat, "R-hat", (1.0, RHAT_LIMIT)), (ess, "effective sample size (bulk)", (0.0,)))
    for axes, (values, title, shown) in zip(grid, panels, strict=True):
        step_axis(axes, steps)
        draw_by_verdict(axes, steps, values, verdicts)
        set_limits(axes, np.r_[values, shown])
        axes.set_xlabel("training step")
        set_title(axes, title, draw_stages(axes, stages, names="short"))
    grid[0].axhline(RHAT_LIMIT, color=RED, lw=1, ls="--", label=f"largest R-hat that is ok ({RHAT_LIMIT:g})")
    legend_below(figure, grid[0])
    return figure
