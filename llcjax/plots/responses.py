"""Components, covariances and temperatures: refined LLCs, kernels, influences, susceptibilities, free energies."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from llcjax.plots.axes import step_axis
from llcjax.plots.style import BLUE, INK, legend_below, new_figure, ordered_colors, plain

_SCALES = ("Blues", "Oranges", "Greens", "Purples", "Reds", "Greys")
"""Colours of the parts of a model, each from light to dark."""


def plot_components(estimates: xr.Dataset) -> Figure:
    """Draw the refined LLC of every component, against the training step or, with one checkpoint, as bars.

    Curves of one part of the model, as ``block_0/attention``, have one hue and their own name at their end.

    Args:
        estimates: what ``llcjax.estimates`` returns for a sweep over components.

    Raises:
        ValueError: ``estimates`` has no components.
    """
    if "component" not in estimates.coords:
        raise ValueError("estimates has no components: run the sweep with components=")
    ordered = estimates.sortby("checkpoint")
    names = [plain(name) for name in ordered["component"].values]
    llc, error = (ordered[name].transpose("setting", "checkpoint").values for name in ("llc", "llc_stderr"))
    if ordered.sizes["checkpoint"] == 1:
        figure, (axes,) = new_figure(1, 1, height=max(2.4, 0.8 + 0.17 * len(names)))
        places = np.arange(len(names))[::-1]
        axes.errorbar(llc[:, 0], places, xerr=1.96 * error[:, 0], fmt="o", ms=3.5, lw=1.1, color=BLUE)
        if llc.min() > 0 and llc.max() > 20 * np.median(llc):  # one part among many small ones
            axes.set_xscale("log")
        else:
            axes.axvline(0, color=INK, lw=0.8)
        axes.set_yticks(places, names, fontsize=7)
        axes.set_xlabel("refined LLC, 95% interval")
        return figure
    figure, (axes,) = new_figure(1, 1, height=4.2)
    steps = ordered["checkpoint"].values
    step_axis(axes, steps)
    groups = [name.rpartition("/")[0] or name for name in names]
    for name, color, values, errors in zip(groups, _hues(groups), llc, error, strict=True):
        axes.plot(steps, values, color=color, lw=1.3, marker=".", ms=3, label=name)
        axes.fill_between(steps, values - 1.96 * errors, values + 1.96 * errors, color=color, alpha=0.12, lw=0)
    _name_ends(axes, [name.rpartition("/")[2] for name in names], _hues(groups), llc[:, -1])
    axes.set(xlabel="training step", ylabel="refined LLC")
    legend_below(figure, axes, num_columns=4)
    return figure


def _hues(groups: list[str]) -> list[Any]:
    """A colour for every member of a group: one hue a group, from dark to light."""
    distinct, colors = list(dict.fromkeys(groups)), []
    for place, name in enumerate(groups):
        scale = matplotlib.colormaps[_SCALES[distinct.index(name) % len(_SCALES)]]
        fraction = groups[:place].count(name) / max(groups.count(name) - 1, 1)
        colors.append(scale(0.95 - 0.45 * fraction))
    return colors


def _name_ends(axes: Axes, names: list[str], colors: list[Any], heights: np.ndarray) -> None:
    """Writes names at the right of the axes beside the ends of their lines, or as near as they can be read."""
    ended = np.flatnonzero(np.isfinite(heights))
    if not ended.size:
        return
    low, high = axes.get_ylim()
    share = min(0.032, 1 / ended.size)
    places = _apart(heights[ended], share * (high - low))
    places += max(low - places.min(), 0) + min(high - places.max(), 0)
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    for index, place in zip(ended, places, strict=True):
        at, size = (axes.get_xlim()[1], place), 7.5 * share / 0.032
        axes.annotate(names[index], at, xytext=(6, 0), color=colors[index], fontsize=size, **style)


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights moved as little as it takes to lie ``gap`` apart, in their order.

    >>> _apart(np.array([1.0, 0.0, 1.0]), 0.5).tolist()
    [0.75, 0.0, 1.25]
    """
    order = np.argsort(heights, kind="stable")
    offsets = gap * np.arange(len(heights))
    # Without the offsets this is isotonic regression: the nearest heights that do not descend.
    moved = isotonic_regression(np.asarray(heights, float)[order] - offsets).x + offsets
    return moved[np.argsort(order)]


def plot_matrix(
    result: xr.Dataset,
    *,
    checkpoint: int = 0,
    setting: int = 0,
    chain: int = 0,
    names: tuple[str, str] = ("example", "example"),
) -> Figure:
    """Draw the matrix of ``llcjax.loss_kernel``, ``bif`` or ``chain_covariance`` at one checkpoint and setting.

    Args:
        result: what one of them returns.
        checkpoint: index of the checkpoint.
        setting: index of the setting.
        chain: index of the chain, where each has a matrix of its own.
        names: of the rows and of the columns.
    """
    value = next(name for name in ("kernel", "bif", "covariance") if name in result)
    figure, (axes,) = new_figure(1, 1, height=4.2)
    one = result[value].isel(checkpoint=checkpoint, setting=setting)
    _image(figure, axes, (one.isel(chain=chain) if "chain" in one.dims else one).values, value)
    axes.set(xlabel=plain(names[1]), ylabel=plain(names[0]))
    return figure


def plot_susceptibilities(result: xr.Dataset, *, checkpoint: int = 0, labels: list[str] | None = None) -> Figure:
    """Draw susceptibilities, one row a component and one column an example, each over its standard error.

    Args:
        result: what ``llcjax.susceptibilities`` returns.
        checkpoint: index of the checkpoint.
        labels: of the examples.
    """
    one = result.isel(checkpoint=checkpoint)
    values = one["susceptibility"].transpose("setting", "example").values
    names = one["component"].values if "component" in one.coords else one["setting"].values
    figure, (axes,) = new_figure(1, 1, height=max(2.6, 1.0 + 0.17 * len(values)))
    _image(figure, axes, values, "susceptibility")
    axes.set_yticks(np.arange(len(values)), [plain(name) for name in names], fontsize=7)
    if labels is not None:
        axes.set_xticks(np.arange(len(labels)), [plain(label) for label in labels], rotation=90, fontsize=7)
    axes.set_xlabel("example")
    return figure


def _image(figure: Figure, axes: Any, values: np.ndarray, name: str) -> None:
    finite = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(finite, 0.99)) if finite.size else 1.0
    shown = axes.imshow(values, cmap="RdBu_r", vmin=-most or -1, vmax=most or 1, aspect="auto", interpolation="nearest")
    axes.grid(False)
    figure.colorbar(shown, ax=axes, label=plain(name))


def plot_temperature(curve: xr.Dataset) -> Figure:
    """Draw the LLC against n_beta, one line a checkpoint.

    Args:
        curve: what ``llcjax.temperature_curve`` returns.
    """
    figure, (axes,) = new_figure(1, 1, height=3.4)
    axes.set_xscale("log")
    for index, color in enumerate(ordered_colors(curve.sizes["checkpoint"])):
        one = curve.isel(checkpoint=index)
        label = f"step {int(one['checkpoint']):,}"
        axes.errorbar(
            one["n_beta"], one["llc"], yerr=1.96 * one["llc_stderr"], color=color, lw=1.3, marker=".", label=label
        )
    axes.set(xlabel="n_beta", ylabel="LLC")
    legend_below(figure, axes)
    return figure


def plot_free_energy(result: xr.Dataset) -> Figure:
    """Draw the local free energy against the training step, one line a setting.

    Args:
        result: what ``llcjax.free_energy`` returns.
    """
    ordered = result.sortby("checkpoint")
    figure, (axes,) = new_figure(1, 1, height=3.2)
    step_axis(axes, ordered["checkpoint"].values)
    for index, color in enumerate(ordered_colors(ordered.sizes["setting"])):
        one = ordered.isel(setting=index)
        label = plain(one["component"].item()) if "component" in one.coords else f"setting {index}"
        axes.errorbar(
            one["checkpoint"], one["free_energy"], yerr=1.96 * one["free_energy_stderr"], color=color, marker=".",
            lw=1.3, label=label,
        )  # fmt: skip
    axes.set(xlabel="training step", ylabel="local free energy (nats)")
    legend_below(figure, axes)
    return figure


def plot_components_of_variance(result: xr.Dataset, *, checkpoint: int = 0, setting: int = 0) -> Figure:
    """Draw the variances of the principal components, largest first, on a logarithmic axis; a line a chain, if of each.

    Args:
        result: what ``llcjax.principal_components`` returns.
        checkpoint: index of the checkpoint.
        setting: index of the setting.
    """
    variance = result["variance"].isel(checkpoint=checkpoint, setting=setting).values
    figure, (axes,) = new_figure(1, 1, height=3.0)
    for one in np.atleast_2d(variance):
        axes.plot(np.arange(1, len(one) + 1), np.where(one > 0, one, np.nan), color=BLUE, marker=".")
    axes.set_yscale("log")
    axes.set(xlabel="principal component", ylabel="variance")
    return figure
