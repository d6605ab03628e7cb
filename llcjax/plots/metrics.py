"""Metrics of the checkpoints, a panel each; a family ``name_3``, ``name_5``, ... shares one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llcjax.plots.axes import draw_reference_losses, step_axis
from llcjax.plots.bands import draw_stages
from llcjax.plots.style import legend_inside, ordered_colors, panel_grid, plain, set_title, spread
from llcjax.selection import checkpoint_columns, checkpoint_variables

if TYPE_CHECKING:
    from llcjax.stages import Stages

NUM_COLUMNS = 2
ABBREVIATIONS = {"icl": "in-context learning", "ood": "out-of-distribution"}
"""Words of variable names as they are written in the title of a panel whose variables have no ``long_name``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """What one panel shows: ``lines`` are {label: value at each checkpoint}."""

    name: str
    title: str
    units: str
    lines: dict[str, np.ndarray]


def plot_metrics(metrics: xr.Dataset, stages: Stages | None = None) -> Figure:
    """Draw every metric in its own panel under the same bands; ``name_3``, ``name_5``, ... share a panel.

    Raises:
        ValueError: no variable of ``metrics`` is a number for every checkpoint.
    """
    panels = _panels(metrics)
    if not panels:
        raise ValueError("metrics has no numeric variable along 'checkpoint': add one or pass metrics=None")
    figure, grid = panel_grid(len(panels), most_columns=NUM_COLUMNS, row_height=2.25)
    steps = metrics["checkpoint"].values
    for axes, panel in zip(grid, panels, strict=True):
        step_axis(axes, steps)
        _draw_lines(axes, steps, panel.lines)
        if panel.name == "test_loss":
            draw_reference_losses(axes, metrics.attrs)
        axes.set_ylabel(plain(panel.units), fontsize=8.5)
        set_title(axes, panel.title, draw_stages(axes, stages, names="short"))
        legend_inside(axes)
    for lowest in grid[-NUM_COLUMNS:]:  # the last panel of each column
        lowest.set_xlabel("training step")
    return figure


def _panels(metrics: xr.Dataset) -> list[_Panel]:
    """Return the panels: a variable with positions has its own, others share one if names differ in numbers."""
    families: dict[tuple[str, int], list[xr.DataArray]] = {}
    for variable in checkpoint_variables(metrics):
        if np.issubdtype(variable.dtype, np.number):
            name = str(variable.name)
            stem = re.sub(r"(_\d+)+$", "", name) if variable.ndim == 1 else name
            families.setdefault((stem, variable.ndim), []).append(variable)
    return [
        _Panel(
            name=stem,
            title=_title_of(stem, family),
            units=str(family[0].attrs.get("units", "")),
            lines=_lines_of(stem, family),
        )
        for (stem, _), family in families.items()
    ]


def _title_of(stem: str, family: list[xr.DataArray]) -> str:
    """Return the words that the ``long_name`` of all variables begin with, or the name where they say no more."""
    long_names = [str(one.attrs.get("long_name", one.name)).split() for one in family]
    shared = takewhile(lambda words: len(set(words)) == 1, zip(*long_names, strict=False))
    common = " ".join(words[0] for words in shared).rstrip(",:")
    name = stem if len(family) > 1 else str(family[0].name)
    if len(common) > 3 and common.replace(" ", "_") != name:
        return common
    return " ".join(ABBREVIATIONS.get(word, word) for word in name.split("_"))


def _lines_of(stem: str, family: list[xr.DataArray]) -> dict[str, np.ndarray]:
    """Return the lines of a panel: the members of a family, or some of the positions."""
    if len(family) > 1:
        return {str(one.name)[len(stem) + 1 :].replace("_", ":"): one.values for one in family}
    columns = list(checkpoint_columns(family[0]))
    return dict(columns[index] for index in spread(len(columns)))


def _draw_lines(axes: Axes, steps: np.ndarray, lines: dict[str, np.ndarray]) -> None:
    order = np.argsort(steps)
    for (label, values), color in zip(lines.items(), ordered_colors(len(lines)), strict=True):
        axes.plot(steps[order], values[order], color=color, lw=1.3, marker=".", ms=3, label=plain(label) or None)
    everything = np.stack(list(lines.values()))
    finite = everything[np.isfinite(everything)]
    if finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
        axes.set_yscale("log")
