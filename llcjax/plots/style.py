"""The house style: colours, empty figures, titles and legends."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, INK, GREY = "#AA4499", "#56B4E9", "#222222", "#8A8A8A"
COLORS = (ORANGE, BLUE, GREEN, PURPLE, SKY)
"""Of lines that have no order, side by side in one figure."""
WIDTH = 9.6  # inches
DOTS_PER_INCH = 150


def new_figure(rows: int, columns: int, *, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure ``height`` inches high and its (rows * columns,) axes; options go to ``Figure.subplots``."""
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06)
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout=layout, facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.grid(axis="y", color="#D9D9D9", lw=0.5)
        axes.set_axisbelow(True)
    return figure, grid


def panel_grid(count: int, *, most_columns: int, row_height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and the axes of ``count`` panels, row by row; places without a panel stay empty."""
    num_columns = min(most_columns, count)
    num_rows = -(-count // num_columns)
    figure, grid = new_figure(num_rows, num_columns, height=0.4 + row_height * num_rows)
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, list(grid[:count])


def ordered_colors(count: int) -> list[Any]:
    """Return colours for an ordered family of lines; one line alone is ink."""
    if count == 1:
        return [INK]
    return [matplotlib.colormaps["cividis"](fraction) for fraction in np.linspace(0.0, 0.85, count)]


def spread(size: int, most: int = 8) -> list[int]:
    """Return at most ``most`` indices below ``size``, about evenly spaced in their logarithm."""
    if size <= most:
        return list(range(size))
    return sorted({round(index) - 1 for index in np.geomspace(1, size, most)})


def legend_inside(axes: Axes) -> None:
    """Put a legend inside small axes, where it must not take part in the layout."""
    if entries := _entries(axes):
        style: dict[str, Any] = {"fontsize": 7.5, "framealpha": 0.8, "edgecolor": "none"}
        legend = axes.legend(list(entries.values()), list(entries), ncols=1 + len(entries) // 4, **style)
        legend.set_in_layout(False)


def legend_below(figure: Figure, *all_axes: Axes, num_columns: int = 5) -> None:
    """Put one legend for all axes under the figure, where it covers no data, in as many columns as are not cut off."""
    if not (entries := _entries(*all_axes)):
        return
    style: dict[str, Any] = {"loc": "outside lower center", "fontsize": 8.5, "frameon": False}
    for columns in range(num_columns, 0, -1):
        legend = figure.legend(list(entries.values()), list(entries), ncols=columns, **style)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _entries(*all_axes: Axes) -> dict[str, Any]:
    """Return {label: handle} of what is drawn, without repetition."""
    entries: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return entries


def set_title(axes: Axes, text: str, lines_below: int = 0) -> None:
    """Write a title at the left, above ``lines_below`` lines of names of stages."""
    axes.set_title(plain(text), loc="left", fontsize=9.5, color=INK, pad=5 + 9 * lines_below)


def plain(text: str) -> str:
    """Return text to be drawn letter by letter: a dollar sign from a file must not start a formula."""
    return str(text).replace("$", r"\$")
