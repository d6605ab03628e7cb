"""Axes: the axis of training steps, limits that keep data readable, and lines of reference losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from llcjax.plots.style import GREEN, RED, plain


def step_axis(axes: Axes, steps: np.ndarray) -> None:
    """Give the axis a log scale over ``steps``; below the decade of the first positive one it is linear."""
    positive = np.asarray(steps, float)[np.asarray(steps) > 0]
    first, last = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    decade = 10.0 ** math.floor(math.log10(max(first, 1.0)))
    room = 10 ** (0.03 * math.log10(max(last / decade, 2.0)))
    if np.min(steps) > 0:
        axes.set_xscale("log")
        axes.set_xlim(first / room, last * room)
    else:
        axes.set_xscale("symlog", linthresh=decade, linscale=0.6)
        axes.set_xlim(-0.25 * decade, max(last, 2 * decade) * room)
    decades = 10.0 ** np.arange(math.floor(math.log10(decade)), math.ceil(math.log10(last * room)) + 1)
    ticks = [0.0, *decades] if np.min(steps) <= 0 else [*decades]
    inside = [tick for tick in ticks if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.xaxis.set_major_locator(FixedLocator(inside if len(inside) > 1 else sorted({*inside, first, last})))
    minor = [tick for tick in np.outer(decades, range(2, 10)).ravel() if tick <= last * room]
    axes.xaxis.set_minor_locator(FixedLocator(minor) if len(minor) < 90 else NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short_step(step)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda step, _: ""))


def short_step(step: float) -> str:
    """Return a step as it is written on an axis.

    >>> [short_step(step) for step in (0, 50, 1000, 2500, 2e6)]
    ['0', '50', '1k', '2.5k', '2M']
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if step >= size:
            return f"{step / size:.4g}{letter}"
    return f"{step:.4g}"


def set_limits(axes: Axes, core: np.ndarray, others: Sequence[float] | np.ndarray = ()) -> tuple[float, float]:
    """Fit the y axis to the finite values of ``core``, and to ``others`` that are near them."""
    finite = core[np.isfinite(core)]
    if finite.size == 0:
        return axes.get_ylim()
    low, high = finite.min(), finite.max()
    span = (high - low) or abs(high) or 1.0
    near = np.asarray(others)
    near = near[(near > low - span) & (near < high + span)]
    low, high = np.min([low, *near]), np.max([high, *near])
    axes.set_ylim(low - 0.07 * (high - low or span), high + 0.07 * (high - low or span))
    return axes.get_ylim()


def limit_to_quantiles(axes: Axes, values: np.ndarray, others: Sequence[float] | np.ndarray = ()) -> None:
    """Fit the y axis to all but the wildest hundredth of the finite values, and to ``others``."""
    finite = values[np.isfinite(values)]
    if finite.size:
        set_limits(axes, np.r_[np.quantile(finite, [0.005, 0.995]), others])


def chance_name(attrs: Mapping[Any, Any]) -> str:
    """Return the name of the predictor whose loss is ``chance``, from the attribute ``chance_name``."""
    return plain(attrs.get("chance_name", "zero predictor"))


def draw_reference_losses(axes: Axes, attrs: Mapping[Any, Any]) -> None:
    """Draw a line at the losses ``chance`` and ``ridge_loss``, those that ``attrs`` has."""
    for name, label, color in (("chance", chance_name(attrs), RED), ("ridge_loss", "ridge regression", GREEN)):
        if attrs.get(name) is not None:
            axes.axhline(float(attrs[name]), color=color, lw=1.1, ls="--", label=label)
