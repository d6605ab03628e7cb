"""Heat maps of a calibration: one panel a measure, localization against step size, every cell with its number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llcjax.plots.axes import set_limits, step_axis
from llcjax.plots.style import BLUE, GREY, INK, RED, new_figure, panel_grid, set_title
from llcjax.plots.verdicts import STYLES
from llcjax.selection import severity

SHOWN_RHAT = 1.5
"""Larger values of R-hat have the same colour."""


def plot_llc_maps(table: xr.Dataset, judged: xr.Dataset, chosen: int | None = None) -> Figure:
    """Draw the LLC over the grid: one column a checkpoint, one row each n_beta and sampler.

    Hatched cells are not sound at that checkpoint, dotted ones lie on no plateau in step size; a red frame marks the
    recommended setting.

    Args:
        table: estimates of the grid.
        judged: what `llcjax.calibrate.judge_settings` returns.
        chosen: index of the recommended setting, or None.
    """
    maps = [
        (f"LLC at step {int(step):,}", table["llc"].values[index], _llc_text(table, index), "viridis", None)
        for index, step in enumerate(table["checkpoint"].values)
    ]
    sound, plateau = judged["sound"].values, judged["step_plateau"].values
    hatches = [np.where(~sound[i], "////", np.where(~plateau[i], "..", "")) for i in range(table.sizes["checkpoint"])]
    return _draw(table, maps, hatches, chosen)


def plot_health_maps(table: xr.Dataset, judged: xr.Dataset, chosen: int | None = None) -> Figure:
    """Draw R-hat, acceptance, rise of the loss towards chance and the worst verdict over the trained checkpoints.

    Hatched cells are not sound at some trained checkpoint; a red frame marks the recommended setting.

    Args:
        table: estimates of the grid.
        judged: what `llcjax.calibrate.judge_settings` returns.
        chosen: index of the recommended setting, or None.
    """
    trained = judged["trained"].values
    trained = trained if trained.any() else np.ones_like(trained)
    rhat = _over(table["rhat"].values[trained], np.max)
    acceptance = _over(judged["acceptance"].values[trained], np.mean)
    lift = _over(judged["lift"].values[trained], np.max)
    verdicts = table["verdict"].values[trained].astype(str)
    worst = np.array([max(column, key=severity) for column in verdicts.T])
    names = list(STYLES)
    codes = np.array([names.index(name) if name in names else len(names) for name in worst], float)
    maps = [
        ("largest R-hat", np.minimum(rhat, SHOWN_RHAT), _numbers(rhat, ".2f"), "cividis_r", Normalize(1, SHOWN_RHAT)),
        ("MALA acceptance", acceptance, _numbers(acceptance, ".0%"), "cividis", Normalize(0, 1)),
        ("rise towards chance", np.clip(lift, -1, 1), _numbers(lift, ".0%"), "cividis_r", Normalize(0, 1)),
        ("worst verdict", codes, [name.replace("_", "\n") for name in worst], _verdict_colors(), Normalize(0, 9)),
    ]
    unsound = ~judged["sound"].values[trained].all(0)
    plain = np.full(unsound.shape, "")
    return _draw(table, maps, [np.where(unsound, "////", "")] * 3 + [plain], chosen)


def plot_sensitivity(bands: xr.Dataset) -> Figure:
    """Draw the LLC with the band of its neighboring settings, one panel each hyperparameter.

    Args:
        bands: what `llcjax.sensitivity.curve_sensitivity` returns, with at least one hyperparameter.
    """
    bands = bands.sortby("checkpoint")
    names, steps = bands["hyperparameter"].values, bands["checkpoint"].values
    figure, panels = panel_grid(len(names), most_columns=3, row_height=2.6)
    for axes, name in zip(panels, names, strict=True):
        band = bands.sel(hyperparameter=name)
        step_axis(axes, steps)
        axes.fill_between(steps, band["lower"].values, band["upper"].values, color=BLUE, alpha=0.2, lw=0)
        axes.plot(steps, bands["llc"].values, color=BLUE, lw=1.2, marker=".", ms=4)
        set_limits(axes, bands["llc"].values, np.r_[band["lower"].values, band["upper"].values])
        axes.set_xlabel("training step")
        set_title(axes, f"LLC, neighbors in {name}")
    return figure


def _over(values: np.ndarray, reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """A measure over checkpoints; NaN where no checkpoint has it."""
    known = np.isfinite(values)
    filler = -np.inf if reduce is np.max else np.nan
    result = np.full(values.shape[1], np.nan)
    some = known.any(0)
    result[some] = (np.nanmean if reduce is np.mean else np.max)(np.where(known, values, filler)[:, some], axis=0)
    return result


def _numbers(values: np.ndarray, form: str) -> list[str]:
    return [format(value, form) if np.isfinite(value) else "none" for value in values]


def _llc_text(table: xr.Dataset, index: int) -> list[str]:
    llc, error = table["llc"].values[index], table["llc_stderr"].values[index]
    return [f"{a:.3g}\n±{b:.1g}" if np.isfinite(a) else "none" for a, b in zip(llc, error, strict=True)]


def _verdict_colors() -> ListedColormap:
    """Pale forms of the colours that markers of verdicts have."""
    strength = {"ok": 0.35, "noisy": 0.12}
    colors = [tuple(1 - strength.get(name, 0.45) * (1 - part) for part in to_rgb(STYLES[name][1])) for name in STYLES]
    return ListedColormap([*colors, to_rgb(GREY)])


def _draw(
    table: xr.Dataset, maps: list[tuple[str, np.ndarray, list[str], Any, Any]], hatches: list[Any], chosen: int | None
) -> Figure:
    """One column a map, one row each (sampler, n_beta); cells sit at their place in the sorted values."""
    samplers = table["sampler"].values.astype(str) if "sampler" in table.coords else np.full(table.sizes["setting"], "")
    rows = sorted({(str(s), float(n)) for s, n in zip(samplers, table["n_beta"].values, strict=True)})
    localizations = np.unique(table["localization"].values)
    height = 0.5 + len(rows) * (0.75 + 0.42 * len(localizations))
    figure, grid = new_figure(len(rows), len(maps), height=max(height, 2.2))
    for row, (sampler, n_beta) in enumerate(rows):
        members = np.flatnonzero((samplers == sampler) & (table["n_beta"].values == n_beta))
        part = table.isel(setting=members)
        for column, ((title, values, words, colors, norm), hatch) in enumerate(zip(maps, hatches, strict=True)):
            axes = grid[row * len(maps) + column]
            scale = norm or _llc_norm(values)
            cells = [(values[i], words[i], str(hatch[i]), i == chosen) for i in members]
            _draw_cells(axes, part, cells, matplotlib.colormaps[colors] if isinstance(colors, str) else colors, scale)
            name = f"{sampler}, " if len(set(samplers)) > 1 else ""
            set_title(axes, title + (f"\n{name}n_beta {n_beta:.4g}" if len(rows) > 1 else ""))
            axes.set_xlabel("step size", fontsize=8.5)
            if column == 0:
                axes.set_ylabel("localization", fontsize=8.5)
    return figure


def _llc_norm(values: np.ndarray) -> Normalize:
    """Colours on a logarithm where all LLCs are positive and spread over more than a decade."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return Normalize(0, 1)
    low, high = float(finite.min()), float(finite.max())
    return LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, max(high, low + 1e-9))


def _draw_cells(
    axes: Axes, part: xr.Dataset, cells: list[tuple[float, str, str, bool]], colors: Any, norm: Any
) -> None:
    levels, across = _columns(part)
    up = np.unique(part["localization"].values)
    for level, localization, (value, words, hatch, framed) in zip(
        levels, part["localization"].values, cells, strict=True
    ):
        x, y = float(level), float(np.searchsorted(up, localization))
        color = colors(norm(value)) if np.isfinite(value) else (0.93, 0.93, 0.93, 1.0)
        corner = (x - 0.5, y - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="white", hatch=hatch, lw=0.8, zorder=2))
        if framed:
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=RED, lw=2.4, zorder=4, clip_on=False))
        bright = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 0.5
        box = {"facecolor": color, "edgecolor": "none", "pad": 0.8} if hatch else None
        axes.text(x, y, words, ha="center", va="center", fontsize=6.5, color=INK if bright else "white", zorder=5,
                  bbox=box)  # fmt: skip
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(-0.5, len(up) - 0.5))
    axes.set_xticks(range(len(across)), across, fontsize=7)
    axes.set_yticks(range(len(up)), [f"{value:.4g}" for value in up], fontsize=7)
    axes.grid(False)


def _columns(part: xr.Dataset) -> tuple[np.ndarray, list[str]]:
    """The column of each setting and the name of each column: a step size, or the range of those of one level."""
    steps = part["step_size"].values
    levels = part["step_level"].values if "step_level" in part.coords else np.searchsorted(np.unique(steps), steps)
    groups = [steps[levels == level] for level in np.unique(levels)]
    names = [f"{g.min():.2g}" if np.ptp(g) == 0 else f"{g.min():.2g} to\n{g.max():.2g}" for g in groups]
    return np.searchsorted(np.unique(levels), levels), names
