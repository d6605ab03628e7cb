"""Markers that show the verdict of each checkpoint, and limits set by the checkpoints to be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from llcjax.plots.axes import set_limits
from llcjax.plots.style import BLUE, GREY, INK, ORANGE, PURPLE, RED, plain
from llcjax.selection import interval, severity, trusted

# Verdict -> (marker, colour, filled).
STYLES: dict[str, tuple[str, str, bool]] = {
    "ok": ("o", BLUE, True),
    "noisy": ("o", BLUE, False),
    "biased": ("D", ORANGE, False),
    "not_minimum": ("v", PURPLE, True),
    "left_basin": ("s", RED, True),
    "not_mixed": ("^", ORANGE, True),
    "stuck": ("P", INK, True),
    "diverged": ("X", RED, True),
    "failed": ("X", GREY, True),
}
SCALE_VERDICTS = ("ok", "noisy")
"""Verdicts of the checkpoints that set the scale of an axis."""
OFF_SCALE_VERDICTS = ("not_minimum", "diverged", "failed")
"""Verdicts whose values say nothing about the scale of an LLC, even where there are no others."""


def draw_by_verdict(
    axes: Axes, steps: np.ndarray, values: np.ndarray, verdicts: np.ndarray, errors: np.ndarray | None = None
) -> None:
    """Draw a marker for every checkpoint; one without a finite value sits at the bottom of the axes."""
    names = verdicts.astype(str)
    for name in sorted(set(names), key=severity):
        marker, color, filled = STYLES.get(name, ("o", GREY, True))
        style: dict[str, Any] = {"marker": marker, "color": color, "ls": "", "ms": 5, "zorder": 3.5}
        style["mfc"] = color if filled else "white"
        here = names == name
        missing, known = here & ~np.isfinite(values), here & np.isfinite(values)
        bars = None if errors is None else errors[:, known]
        axes.plot([], [], label=f"{plain(name).replace('_', ' ')} ({here.sum()})", **style)
        axes.errorbar(steps[known], values[known], bars, elinewidth=1, capsize=2, **style)
        if missing.any():
            edge = np.full(missing.sum(), 0.02)
            axes.plot(steps[missing], edge, transform=axes.get_xaxis_transform(), **style)


def draw_estimates(axes: Axes, curve: xr.Dataset) -> None:
    """Draw the LLC with its 95% intervals; a line joins the checkpoints that are ok or noisy."""
    steps, values = curve["checkpoint"].values, curve["llc"].values
    lower, upper = interval(curve)
    joined = np.isin(curve["verdict"].values, SCALE_VERDICTS) & np.isfinite(values)
    axes.plot(steps[joined], values[joined], color=BLUE, lw=0.6, alpha=0.5, zorder=2)
    errors = np.nan_to_num(np.abs(np.stack([values - lower, upper - values])))
    draw_by_verdict(axes, steps, values, curve["verdict"].values, errors)


def limit_to_trusted(axes: Axes, curve: xr.Dataset) -> None:
    """Keep the trusted points readable: an estimate far outside their range becomes an arrow on the edge."""
    lower, upper = interval(curve)
    core = trusted(curve, verdicts=SCALE_VERDICTS)
    steps, values = curve["checkpoint"].values, curve["llc"].values
    set_limits(axes, np.r_[lower[core], upper[core], 0.0], values)
    mark_off_scale(axes, steps, values)


def mark_off_scale(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw an arrow on the edge for every value outside the y limits."""
    bottom, top = axes.get_ylim()
    for beyond, height, marker in ((values > top, 0.985, "^"), (values < bottom, 0.015, "v")):
        if beyond.any():
            style: dict[str, Any] = {"color": RED, "ms": 7, "mfc": "none", "label": "off the scale"}
            edge = np.full(beyond.sum(), height)
            axes.plot(steps[beyond], edge, marker, transform=axes.get_xaxis_transform(), **style)
