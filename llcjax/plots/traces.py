"""The chains of single checkpoints: loss traces and the running LLC, one panel a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llcjax.estimators import excess_loss
from llcjax.plots.axes import chance_name, limit_to_quantiles
from llcjax.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    legend_below,
    panel_grid,
    set_title,
)
from llcjax.selection import interval, one_setting

CHAIN_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, INK, GREY)


def plot_traces(sweep: xr.Dataset, checkpoints: Sequence[int] | Mapping[int, str], *, setting: int = 0) -> Figure:
    """Draw the loss of every chain above the loss at w*, burn-in shaded, one panel a checkpoint.

    Args:
        sweep: what ``llcjax.open_sweep`` returns.
        checkpoints: training steps, or a mapping from training step to a remark for the title.
        setting: index of the hyperparameter setting.
    """
    traces = sweep.isel(setting=setting).sel(checkpoint=list(checkpoints))
    excess = excess_loss(traces).transpose("checkpoint", "chain", "draw")
    figure, panels = _checkpoint_panels(checkpoints, "L(w) - L(w*)")
    for step, axes in panels.items():
        one = traces.sel(checkpoint=step)
        draws, values = one["draw"].values, excess.sel(checkpoint=step).values
        for chain, trace in enumerate(values):
            color = CHAIN_COLORS[chain % len(CHAIN_COLORS)]
            axes.plot(draws, trace, color=color, lw=0.4, alpha=0.22)
            axes.plot(draws, _smooth(trace), color=color, lw=1.1)
        axes.axhline(0, color=INK, lw=0.8, label="level of w*")
        limit_to_quantiles(axes, np.c_[values, np.zeros(len(values))])
        _draw_chance(axes, one)
        _shade_burnin(axes, draws, int(sweep.attrs.get("num_burnin_steps", 0)))
    legend_below(figure, *panels.values())
    return figure


def plot_running_llc(
    running: xr.DataArray,
    checkpoints: Sequence[int] | Mapping[int, str],
    *,
    setting: int = 0,
    estimates: xr.Dataset | None = None,
) -> Figure:
    """Draw the LLC from the draws so far: thin lines are chains, the thick line is their mean.

    Args:
        running: what ``llcjax.running_llc`` returns; dims checkpoint, setting, chain, draw.
        checkpoints: training steps, or a mapping from training step to a remark for the title.
        setting: index of the hyperparameter setting.
        estimates: adds the final estimate with its 95% interval as a green band.
    """
    figure, panels = _checkpoint_panels(checkpoints, "LLC so far")
    draws = running["draw"].values
    for step, axes in panels.items():
        values = running.isel(setting=setting).sel(checkpoint=step).transpose("chain", "draw").values
        axes.plot(draws, values[0], color=GREY, lw=0.7, alpha=0.75, label="one chain")
        axes.plot(draws, values[1:].T, color=GREY, lw=0.7, alpha=0.75)
        axes.plot(draws, _finite_mean(values), color=BLUE, lw=1.8, label="mean over chains")
        final = np.empty(0)
        if estimates is not None:
            final = np.ravel(interval(one_setting(estimates, setting).sel(checkpoint=step)))
        if final.size and np.isfinite(final).all():
            axes.axhspan(*final, color=GREEN, alpha=0.25, lw=0, label="final estimate, 95%")
        limit_to_quantiles(axes, values[:, values.shape[1] // 3 :], final)
    legend_below(figure, *panels.values())
    return figure


def _checkpoint_panels(checkpoints: Sequence[int] | Mapping[int, str], ylabel: str) -> tuple[Figure, dict[int, Axes]]:
    """Return a figure and {training step: axes}, with the remarks in the titles."""
    remarks = checkpoints if isinstance(checkpoints, Mapping) else dict.fromkeys(checkpoints, "")
    figure, panels = panel_grid(len(remarks), most_columns=3, row_height=2.35)
    for index, (axes, (step, remark)) in enumerate(zip(panels, remarks.items(), strict=True)):
        set_title(axes, f"step {step:,}" + (f": {remark}" if remark else ""))
        axes.set_xlabel("sampler step", fontsize=9)
        if index % 3 == 0:
            axes.set_ylabel(ylabel)
    return figure, dict(zip(remarks, panels, strict=True))


def _draw_chance(axes: Axes, one: xr.Dataset) -> None:
    """Draw the loss of the zero predictor above w* where it is near enough to be read."""
    if one.attrs.get("chance") is None:
        return
    height, (bottom, top) = float(one.attrs["chance"]) - _loss_at_center(one), axes.get_ylim()
    if 0 < height < bottom + 1.6 * (top - bottom):
        axes.axhline(height, color=RED, lw=1.1, ls="--", label=f"level of the {chance_name(one.attrs)}")
        axes.set_ylim(bottom, max(top, height + 0.1 * (top - bottom)))


def _loss_at_center(one: xr.Dataset) -> float:
    if "init_loss" in one:
        return float(one["init_loss"])
    return float(one["baseline_loss"].mean()) if "baseline_loss" in one else 0.0


def _shade_burnin(axes: Axes, draws: np.ndarray, num_burnin_steps: int) -> None:
    if num_burnin_steps > draws.min():
        axes.axvspan(draws.min(), min(num_burnin_steps, draws.max()), color="#EBEBEB", lw=0, zorder=0)
    axes.set_xlim(draws.min(), max(draws.max(), draws.min() + 1))


def _smooth(trace: np.ndarray) -> np.ndarray:
    """Return the moving average of a trace over a twenty-fifth of its length, NaN at its ends."""
    window = max(1, trace.size // 25)
    smooth = np.full(trace.shape, np.nan)
    start = (window - 1) // 2
    smooth[start : start + trace.size - window + 1] = np.convolve(trace, np.ones(window) / window, "valid")
    return smooth


def _finite_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over chains of the finite values, NaN where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(0)
    return np.where(count > 0, np.where(finite, values, 0).sum(0) / np.maximum(count, 1), np.nan)
