"""Figures of a sweep: one function a figure, each returns a ``matplotlib.figure.Figure``.

Nothing here touches ``pyplot`` or ``rcParams``, so figures can be made in any thread and without a display;
save one with ``figure.savefig(path)``. Colours are those of Okabe and Ito (2008), told apart by readers with
any common colour blindness, and marker shapes repeat what colours say. Training steps are on a logarithmic
axis that has room for step 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from llcjax.diagnostics import RHAT_LIMIT, VERDICTS
from llcjax.estimators import excess_loss

if TYPE_CHECKING:
    from llcjax.stages import Stages

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, INK, GREY = "#AA4499", "#56B4E9", "#222222", "#8A8A8A"
CHAIN_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, INK, GREY)

# Verdict -> (marker, colour, filled).
VERDICT_STYLES: dict[str, tuple[str, str, bool]] = {
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

# Stage kind -> two tints, so that neighbours of one kind can be told apart.
STAGE_TINTS = {"A": ("#E3EFF8", "#D2E5F3"), "B": ("#FDEDD8", "#FAE2C3"), "-": ("#EFEFEF", "#E4E4E4")}
WIDTH, LETTER_POINTS = 9.6, 5.4  # inches of a figure; mean width of a letter of a label, points
DOTS_PER_INCH = 150
RHAT_SHOWN = 1.5  # larger values of R-hat are drawn here: they all say the same


def plot_curve(
    estimates: xr.Dataset,
    metrics: xr.Dataset | None = None,
    stages: Stages | None = None,
    *,
    setting: int = 0,
) -> Figure:
    """Draw the LLC with 95% error bars over the loss, under the bands of the stages.

    Args:
        estimates: what ``llcjax.estimates`` returns.
        metrics: where its ``test_loss`` is present it is the loss that is drawn; otherwise the loss at w*.
        stages: bands, boundaries with their 90% intervals and the fitted curve with its band.
        setting: index of the hyperparameter setting.
    """
    curve = one_setting(estimates, setting)
    figure, (llc_axes, loss_axes) = _figure(2, 1, height=5.6, height_ratios=(2.3, 1), sharex=True)
    _step_axis(llc_axes, curve["checkpoint"].values)
    if stages is not None and stages.fit is not None:
        fit = stages.fit
        llc_axes.plot(fit.step, fit.mean, color=INK, lw=1.2, label="fit, 90% band", zorder=2)
        llc_axes.fill_between(fit.step, fit.lower, fit.upper, color=INK, alpha=0.12, lw=0, zorder=1.5)
    _draw_estimates(llc_axes, curve)
    _limit_to_trusted(llc_axes, curve)
    llc_axes.set_ylabel("LLC")
    _draw_losses(loss_axes, curve, metrics)
    loss_axes.set_xlabel("training step")
    _draw_stages(llc_axes, stages, names="full")
    _draw_stages(loss_axes, stages)
    _legend_below(figure, llc_axes, loss_axes)
    return figure


def plot_slope(stages: Stages) -> Figure:
    """Draw the slope of the fitted curve, d LLC / d ln(step + 1), with its band, plateaus and boundaries.

    Raises:
        ValueError: ``stages`` holds no fitted curve.
    """
    if stages.fit is None:
        raise ValueError("stages.fit is None: call find_stages with a method that fits a curve, such as 'gp'")
    fit = stages.fit
    figure, axes = _figure(1, 1, height=3.2)
    _step_axis(axes, fit.step)
    axes.axhline(0, color=INK, lw=0.8)
    axes.plot(fit.step, fit.slope, color=BLUE, lw=1.6, label="slope of the fit, 90% band")
    axes.fill_between(fit.step, fit.slope_lower, fit.slope_upper, color=BLUE, alpha=0.22, lw=0)
    for index, plateau in enumerate(stages.plateaus):
        ends = [max(plateau.start, axes.get_xlim()[0]), plateau.end]
        style = {"color": GREEN, "lw": 5, "solid_capstyle": "butt", "label": None if index else "plateau"}
        axes.plot(ends, [0.97, 0.97], transform=axes.get_xaxis_transform(), **style)
    axes.set(xlabel="training step", ylabel="d LLC / d ln(step + 1)")
    _draw_stages(axes, stages, names="full")
    _legend_below(figure, axes)
    return figure


def plot_metrics(metrics: xr.Dataset, stages: Stages | None = None) -> Figure:
    """Draw every metric in its own panel under the same bands; ``name_3``, ``name_5``, ... share a panel.

    Raises:
        ValueError: no variable of ``metrics`` is a number for every checkpoint.
    """
    panels = _metric_panels(metrics)
    if not panels:
        raise ValueError("metrics has no numeric variable along 'checkpoint': add one or pass metrics=None")
    num_columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure, grid = _figure(num_rows, num_columns, height=0.4 + 2.25 * num_rows)
    for index, (axes, (title, lines)) in enumerate(zip(np.ravel(grid), panels, strict=False)):
        _step_axis(axes, metrics["checkpoint"].values)
        _draw_lines(axes, metrics["checkpoint"].values, lines)
        if title == "test loss":
            _draw_reference_losses(axes, metrics.attrs)
        axes.set_ylabel(_plain(lines[0][2]), fontsize=8.5)
        if index >= len(panels) - num_columns:
            axes.set_xlabel("training step")
        _title(axes, title, _draw_stages(axes, stages, names="short"))
        _legend(axes)
    for axes in np.ravel(grid)[len(panels) :]:
        axes.set_axis_off()
    return figure


def plot_traces(sweep: xr.Dataset, checkpoints: Sequence[int] | Mapping[int, str], *, setting: int = 0) -> Figure:
    """Draw the loss of every chain above the loss at w*, burn-in shaded, one panel a checkpoint.

    Args:
        sweep: what ``llcjax.open_sweep`` returns.
        checkpoints: training steps, or a mapping from training step to a remark for the title.
        setting: index of the hyperparameter setting.
    """
    traces = sweep.isel(setting=setting).sel(checkpoint=list(checkpoints))
    excess = excess_loss(traces).transpose("checkpoint", "chain", "draw")
    figure, panels = _checkpoint_panels(checkpoints)
    for axes, step in panels:
        one = traces.sel(checkpoint=step)
        draws, values = one["draw"].values, excess.sel(checkpoint=step).values
        for chain, trace in enumerate(values):
            color = CHAIN_COLORS[chain % len(CHAIN_COLORS)]
            axes.plot(draws, trace, color=color, lw=0.4, alpha=0.22)
            axes.plot(draws, _smooth(trace), color=color, lw=1.1)
        axes.axhline(0, color=INK, lw=0.8, label="level of w*")
        _limit_to_quantiles(axes, np.c_[values, np.zeros(len(values))])
        _draw_chance(axes, one, sweep.attrs.get("chance"))
        _shade_burnin(axes, sweep, draws)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("L(w) - L(w*)")
    _legend_below(figure, *(axes for axes, _ in panels))
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
    figure, panels = _checkpoint_panels(checkpoints)
    for axes, step in panels:
        values = running.isel(setting=setting).sel(checkpoint=step).transpose("chain", "draw").values
        draws = running["draw"].values
        axes.plot(draws, values[0], color=GREY, lw=0.7, alpha=0.75, label="one chain")
        axes.plot(draws, values[1:].T, color=GREY, lw=0.7, alpha=0.75)
        axes.plot(draws, _finite_mean(values), color=BLUE, lw=1.8, label="mean over chains")
        final: tuple[float, ...] = ()
        if estimates is not None:
            one = one_setting(estimates, setting).sel(checkpoint=[step])
            (lower,), (upper,) = interval(one)
            if np.isfinite([lower, upper]).all():
                final = (lower, upper)
                axes.axhspan(lower, upper, color=GREEN, alpha=0.25, lw=0, label="final estimate, 95%")
        _limit_to_quantiles(axes, values[:, values.shape[1] // 3 :], final)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("LLC so far")
    _legend_below(figure, *(axes for axes, _ in panels))
    return figure


def plot_mean_loss(
    estimates: xr.Dataset, chance: float | None = None, stages: Stages | None = None, *, setting: int = 0
) -> Figure:
    """Draw the mean loss of the draws with the loss at w* and that of the zero predictor.

    Chains that stay near w* have a mean loss near that of w*. Chains at or above ``chance`` have lost what
    the network had learned; their LLC measures how far the loss can rise, not the geometry around w*.

    Args:
        estimates: what ``llcjax.estimates`` returns.
        chance: loss of the zero predictor; None takes it from the attributes of ``estimates``.
        stages: bands and boundaries, or None.
        setting: index of the hyperparameter setting.
    """
    curve = one_setting(estimates, setting)
    chance = estimates.attrs.get("chance") if chance is None else chance
    figure, axes = _figure(1, 1, height=3.4)
    steps = curve["checkpoint"].values
    _step_axis(axes, steps)
    axes.fill_between(steps, curve["init_loss"], curve["mean_loss"], color=INK, alpha=0.1, lw=0)
    axes.plot(steps, curve["mean_loss"], color=BLUE, lw=0.8, label="mean sampled loss, by verdict:")
    _draw_by_verdict(axes, steps, curve["mean_loss"].values, curve["verdict"].values)
    axes.plot(steps, curve["init_loss"], color=INK, lw=1.4, marker=".", ms=4, label="loss at w*")
    if chance is not None:
        axes.axhline(chance, color=RED, lw=1.2, ls="--", label=chance_name(estimates.attrs))
    known = [
        *curve["init_loss"].values,
        *curve["mean_loss"].values[_trusted(curve, "mean_loss")],
        math.nan if chance is None else chance,
    ]
    _set_limits(axes, np.asarray(known, float))
    axes.set(xlabel="training step", ylabel="loss")
    _draw_stages(axes, stages, names="full")
    _legend_below(figure, axes)
    return figure


def plot_positions(estimates: xr.Dataset, stages: Stages | None = None, *, setting: int = 0) -> Figure:
    """Draw the LLC of the loss of single positions in the context, at most eight of them.

    Raises:
        ValueError: ``estimates`` has no ``llc_position``.
    """
    if "llc_position" not in estimates:
        raise ValueError("estimates has no 'llc_position': run the sweep with per-position losses recorded")
    curve = one_setting(estimates, setting)
    values = curve["llc_position"].transpose("checkpoint", "position").values
    steps, positions = curve["checkpoint"].values, curve["position"].values
    figure, axes = _figure(1, 1, height=3.4)
    _step_axis(axes, steps)
    chosen = _spread(len(positions))
    for index, color in zip(chosen, _ordered_colors(len(chosen)), strict=True):
        axes.plot(
            steps,
            values[:, index],
            color=color,
            lw=1.3,
            marker=".",
            ms=4,
            label=f"position {positions[index]}",
        )
        if "llc_position_stderr" in curve:
            error = 1.96 * curve["llc_position_stderr"].isel(position=index).values
            axes.fill_between(steps, values[:, index] - error, values[:, index] + error, color=color, alpha=0.15, lw=0)
    _set_limits(axes, values[_trusted(curve)][:, chosen].ravel())
    axes.set(xlabel="training step", ylabel="LLC of one position")
    _draw_stages(axes, stages, names="full")
    _legend_below(figure, axes)
    return figure


def plot_health(estimates: xr.Dataset, stages: Stages | None = None, *, setting: int = 0) -> Figure:
    """Draw R-hat (at most 1.5) and the effective sample size of every checkpoint, marked by verdict."""
    curve = one_setting(estimates, setting)
    figure, grid = _figure(1, 2, height=2.9)
    steps, verdicts = curve["checkpoint"].values, curve["verdict"].values
    panels = (("rhat", "R-hat", (1.0, RHAT_LIMIT)), ("ess_bulk", "effective sample size (bulk)", (0.0,)))
    for axes, (name, title, limits) in zip(grid, panels, strict=True):
        _step_axis(axes, steps)
        values = curve[name].values.astype(float)
        shown = np.minimum(values, RHAT_SHOWN) if name == "rhat" else values
        _draw_by_verdict(axes, steps, shown, verdicts)
        _set_limits(axes, np.r_[np.clip(values, 0, RHAT_SHOWN if name == "rhat" else np.inf), limits])
        axes.set_xlabel("training step")
        _title(axes, title, _draw_stages(axes, stages, names="short"))
    grid[0].axhline(RHAT_LIMIT, color=RED, lw=1, ls="--", label=f"largest R-hat that is ok ({RHAT_LIMIT:g})")
    _legend_below(figure, grid[0])
    return figure


def plot_settings(estimates: xr.Dataset, stages: Stages | None = None) -> Figure:
    """Draw the LLC at every hyperparameter setting: what moves with the setting is no property of w*."""
    figure, axes = _figure(1, 1, height=3.6)
    ordered = estimates.sortby("checkpoint")
    steps = ordered["checkpoint"].values
    _step_axis(axes, steps)
    for index, color in zip(range(ordered.sizes["setting"]), _ordered_colors(ordered.sizes["setting"]), strict=True):
        curve = ordered.isel(setting=index)
        lower, upper = interval(curve)
        axes.plot(steps, curve["llc"], color=color, lw=1.4, marker=".", ms=4, label=setting_label(curve))
        axes.fill_between(steps, lower, upper, color=color, alpha=0.15, lw=0)
    _set_limits(axes, ordered["llc"].values[_trusted(ordered)])
    axes.set(xlabel="training step", ylabel="LLC")
    _draw_stages(axes, stages, names="full")
    _legend_below(figure, axes, num_columns=2)
    return figure


def one_setting(estimates: xr.Dataset, setting: int) -> xr.Dataset:
    """Return the estimates at one setting, sorted by training step.

    Raises:
        ValueError: there is no such setting.
    """
    if not 0 <= setting < estimates.sizes["setting"]:
        raise ValueError(f"setting={setting} is out of range: choose from 0 to {estimates.sizes['setting'] - 1}")
    return estimates.isel(setting=setting).sortby("checkpoint")


def interval(curve: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% interval of the LLC: ``llc_lower`` and ``llc_upper`` if present, else 1.96 s.e."""
    if "llc_lower" in curve and "llc_upper" in curve:
        return curve["llc_lower"].values, curve["llc_upper"].values
    half = 1.96 * curve["llc_stderr"].values
    return curve["llc"].values - half, curve["llc"].values + half


def chance_name(attrs: Mapping[Any, Any]) -> str:
    """Return the name of the predictor whose loss is ``chance``, from the attribute ``chance_name``."""
    return _plain(attrs.get("chance_name", "zero predictor"))


def setting_label(curve: xr.Dataset) -> str:
    """Return the hyperparameters of one setting in a few words."""
    names = {"n_beta": "n_beta", "localization": "localization", "step_size": "step size"}
    return ", ".join(f"{label} {float(curve[name]):.4g}" for name, label in names.items() if name in curve.coords)


# ---- parts of figures ------------------------------------------------------------------------------------


def _figure(rows: int, columns: int, *, height: float, **options: Any) -> tuple[Figure, Any]:
    """Make a figure in the house style; ``options`` go to ``Figure.subplots``."""
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06)
    grid = figure.subplots(rows, columns, **options)
    for axes in np.ravel(grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.grid(axis="y", color="#D9D9D9", lw=0.5)
        axes.set_axisbelow(True)
    return figure, grid


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
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


def _draw_stages(axes: Axes, stages: Stages | None, *, names: str = "") -> int:
    """Draw bands and boundaries; ``names`` above the axes are "full" (with the type), "short" or "" (none).

    Returns:
        The number of lines that the names take.
    """
    if stages is None:
        return 0
    left, right = axes.get_xlim()
    for index, stage in enumerate(stages.stages):
        start, end = np.clip([stage.start, stage.end], left, right)
        tint = STAGE_TINTS.get(stage.kind, STAGE_TINTS["-"])[index % 2]
        axes.axvspan(start, end, color=tint, lw=0, zorder=0)
    for index, boundary in enumerate(stages.boundaries):
        style = ":" if boundary.kind == "least_slope" else "--"
        axes.axvline(boundary.step, color=INK, lw=0.9, ls=style, zorder=1)
        ends = np.clip([boundary.lower, boundary.upper], left, right)
        label = "boundary, 90% interval" if names == "full" and index == 0 else None
        strip = {"color": INK, "lw": 3.5, "alpha": 0.8, "solid_capstyle": "butt", "zorder": 4}
        if np.isfinite(ends).all():
            axes.plot(ends, [0.02, 0.02], transform=axes.get_xaxis_transform(), label=label, **strip)
    axes.set_xlim(left, right)
    return _name_stages(axes, stages, full=names == "full") if names else 0


def _name_stages(axes: Axes, stages: Stages, *, full: bool) -> int:
    """Write names of stages over their bands, on a higher line where the one before is in the way."""
    width = 72 * 0.88 * WIDTH / axes.get_subplotspec().get_gridspec().ncols
    size, letter = (9, LETTER_POINTS * 1.1) if full else (7.5, LETTER_POINTS * 0.9)
    line_ends: list[float] = []
    for stage in stages.stages:
        text = f"{stage.name} · {stage.kind}" if full and stage.kind in ("A", "B") else str(stage.name)
        half = letter * (len(text) + 1) / 2
        middle = min(_fraction(axes, stage.start, stage.end) * width, width - half)
        line = next((i for i, end in enumerate(line_ends) if middle - half > end), len(line_ends))
        line_ends[line : line + 1] = [middle + half]
        place = {"xy": (middle / width, 1), "xytext": (0, 3 + 1.2 * size * line), "ha": "center"}
        place |= {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(_plain(text), fontsize=size, color="#444444", weight="bold" if full else None, **place)
    return len(line_ends)


def _fraction(axes: Axes, start: float, end: float) -> float:
    """Return where the middle of a band lies, as a fraction of the width of the axes."""
    transform = axes.get_xaxis_transform() + axes.transAxes.inverted()
    ends = [transform.transform((step, 0))[0] for step in np.clip([start, end], *axes.get_xlim())]
    return float(np.mean(ends))


def _draw_estimates(axes: Axes, curve: xr.Dataset) -> None:
    steps, values = curve["checkpoint"].values, curve["llc"].values
    lower, upper = interval(curve)
    joined = np.isin(curve["verdict"].values, ("ok", "noisy")) & np.isfinite(values)
    axes.plot(steps[joined], values[joined], color=BLUE, lw=0.6, alpha=0.5, zorder=2)
    errors = np.nan_to_num(np.abs(np.stack([values - lower, upper - values])))
    _draw_by_verdict(axes, steps, values, curve["verdict"].values, errors)


def _draw_by_verdict(
    axes: Axes, steps: np.ndarray, values: np.ndarray, verdicts: np.ndarray, errors: np.ndarray | None = None
) -> None:
    """Draw a marker for every checkpoint; one without a finite value sits at the bottom of the axes."""
    names = [str(verdict) for verdict in verdicts]
    for name in sorted(set(names), key=severity):
        marker, color, filled = VERDICT_STYLES.get(name, ("o", GREY, True))
        style = {
            "marker": marker,
            "color": color,
            "mfc": color if filled else "white",
            "ls": "",
            "ms": 5,
            "zorder": 3.5,
        }
        here = np.asarray([other == name for other in names])
        missing, known = here & ~np.isfinite(values), here & np.isfinite(values)
        bars = None if errors is None else errors[:, known]
        label = f"{_plain(name).replace('_', ' ')} ({here.sum()})"
        axes.plot([], [], label=label, **style)
        axes.errorbar(steps[known], values[known], bars, elinewidth=1, capsize=2, **style)
        if missing.any():
            edge = np.full(missing.sum(), 0.02)
            axes.plot(steps[missing], edge, transform=axes.get_xaxis_transform(), **style)


def severity(verdict: str) -> int:
    """Return how bad a verdict is: 0 for "ok", larger for worse, largest for one that is not known."""
    return VERDICTS.index(verdict) if verdict in VERDICTS else len(VERDICTS)


def _trusted(curve: xr.Dataset, name: str = "llc") -> np.ndarray:
    """Return which values set the scale: those ok or noisy, or all finite ones if those are few."""
    finite = np.isfinite(curve[name].values)
    trusted = finite & np.isin(curve["verdict"].values, ("ok", "noisy"))
    return trusted if 2 * trusted.sum() >= finite.sum() else finite


def _limit_to_trusted(axes: Axes, curve: xr.Dataset) -> None:
    """Keep the trusted points readable: an estimate far outside their range becomes an arrow on the edge."""
    lower, upper = interval(curve)
    trusted = _trusted(curve)
    bottom, top = _set_limits(axes, np.r_[lower[trusted], upper[trusted], 0.0], curve["llc"].values)
    steps, values = curve["checkpoint"].values, curve["llc"].values
    for beyond, height, marker in ((values > top, 0.985, "^"), (values < bottom, 0.015, "v")):
        if beyond.any():
            style = {"color": RED, "ms": 7, "mfc": "none", "label": "off the scale"}
            edge = np.full(beyond.sum(), height)
            axes.plot(steps[beyond], edge, marker, transform=axes.get_xaxis_transform(), **style)


def _set_limits(axes: Axes, core: np.ndarray, others: np.ndarray | None = None) -> tuple[float, float]:
    """Fit the y axis to the finite values of ``core``, and to ``others`` that are near them."""
    finite = core[np.isfinite(core)]
    if finite.size == 0:
        return axes.get_ylim()
    low, high = finite.min(), finite.max()
    span = (high - low) or abs(high) or 1.0
    near = np.asarray([] if others is None else others)
    near = near[(near > low - span) & (near < high + span)]
    low, high = np.min([low, *near]), np.max([high, *near])
    axes.set_ylim(low - 0.07 * (high - low or span), high + 0.07 * (high - low or span))
    return axes.get_ylim()


def _limit_to_quantiles(axes: Axes, values: np.ndarray, others: Sequence[float] = ()) -> None:
    """Fit the y axis to all but the wildest hundredth of the finite values, and to ``others``."""
    finite = values[np.isfinite(values)]
    if finite.size:
        _set_limits(axes, np.r_[np.quantile(finite, [0.005, 0.995]), others])


def _draw_losses(axes: Axes, curve: xr.Dataset, metrics: xr.Dataset | None) -> None:
    """Draw the test loss of the metrics, or else the loss at w*, with its reference losses."""
    if metrics is not None and "test_loss" in metrics:
        ordered = metrics.sortby("checkpoint")
        axes.plot(ordered["checkpoint"], ordered["test_loss"], color=INK, lw=1.4, marker=".", ms=4)
        axes.set_ylabel("test loss")
        _draw_reference_losses(axes, {**curve.attrs, **metrics.attrs})
        return
    axes.plot(curve["checkpoint"], curve["init_loss"], color=INK, lw=1.4, marker=".", ms=4)
    axes.set_ylabel("loss at w*")
    _draw_reference_losses(axes, curve.attrs)


def _draw_reference_losses(axes: Axes, attrs: Mapping[Any, Any]) -> None:
    for name, label, color in (
        ("chance", chance_name(attrs), RED),
        ("ridge_loss", "ridge regression", GREEN),
    ):
        if attrs.get(name) is not None:
            axes.axhline(float(attrs[name]), color=color, lw=1.1, ls="--", label=label)


def _metric_panels(metrics: xr.Dataset) -> list[tuple[str, list[tuple[str, np.ndarray, str]]]]:
    """Return (title, [(label, values, units), ...]) pairs, joined where names differ in numbers."""
    groups: dict[str, list[xr.DataArray]] = {}
    for name, variable in metrics.data_vars.items():
        if "checkpoint" in variable.dims and np.issubdtype(variable.dtype, np.number):
            stem = re.sub(r"(_\d+)+$", "", str(name)) if variable.ndim == 1 else f"{name} "
            groups.setdefault(stem, []).append(variable)
    return [(_panel_title(stem, group), _panel_lines(stem, group)) for stem, group in groups.items()]


def _panel_title(stem: str, group: list[xr.DataArray]) -> str:
    names = [str(one.attrs.get("long_name", one.name)) for one in group]
    common = re.sub(r"[\W\d_]+$", "", _common_start(names)) if len(names) > 1 else names[0]
    return common.replace("_", " ") if len(common) > 3 else stem.strip().replace("_", " ")


def _common_start(names: Sequence[str]) -> str:
    low, high = min(names), max(names)
    return low[: next((i for i, letter in enumerate(low) if letter != high[i]), len(low))]


def _panel_lines(stem: str, group: list[xr.DataArray]) -> list[tuple[str, np.ndarray, str]]:
    units = str(group[0].attrs.get("units", ""))
    if len(group) > 1:
        return [(str(one.name)[len(stem) + 1 :].replace("_", ":"), one.values, units) for one in group]
    if group[0].ndim == 1:
        return [("", group[0].values, units)]
    other_dims = [dim for dim in group[0].dims if dim != "checkpoint"]
    flat = group[0].stack(line=other_dims).transpose("checkpoint", "line")
    labels = [" ".join(str(part) for part in np.atleast_1d(np.asarray(one, object))) for one in _tuples(flat)]
    return [(labels[index], flat.values[:, index], units) for index in _spread(len(labels))]


def _tuples(flat: xr.DataArray) -> list[tuple[Any, ...]]:
    return [tuple(item) for item in flat.indexes["line"]]


def _draw_lines(axes: Axes, steps: np.ndarray, lines: list[tuple[str, np.ndarray, str]]) -> None:
    order = np.argsort(steps)
    for (label, values, _), color in zip(lines, _ordered_colors(len(lines)), strict=True):
        axes.plot(steps[order], values[order], color=color, lw=1.3, marker=".", ms=3, label=_plain(label) or None)
    everything = np.concatenate([values for _, values, _ in lines])
    finite = everything[np.isfinite(everything)]
    if finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
        axes.set_yscale("log")


def _checkpoint_panels(
    checkpoints: Sequence[int] | Mapping[int, str],
) -> tuple[Figure, list[tuple[Axes, int]]]:
    remarks = checkpoints if isinstance(checkpoints, Mapping) else dict.fromkeys(checkpoints, "")
    num_columns = min(3, len(remarks))
    num_rows = math.ceil(len(remarks) / num_columns)
    figure, grid = _figure(num_rows, num_columns, height=0.4 + 2.35 * num_rows)
    cells = list(np.ravel(grid))
    for axes, (step, remark) in zip(cells, remarks.items(), strict=False):
        _title(axes, f"step {step:,}" + (f": {remark}" if remark else ""))
        axes.set_xlabel("sampler step", fontsize=9)
    for axes in cells[len(remarks) :]:
        axes.set_axis_off()
    return figure, list(zip(cells, remarks, strict=False))


def _draw_chance(axes: Axes, one: xr.Dataset, chance: float | None) -> None:
    """Draw the loss of the zero predictor above w* where it is near enough to be read."""
    if chance is None:
        return
    base = float(one["init_loss"]) if "init_loss" in one else _mean_baseline(one)
    height, (bottom, top) = float(chance) - base, axes.get_ylim()
    if 0 < height < bottom + 1.6 * (top - bottom):
        axes.axhline(height, color=RED, lw=1.1, ls="--", label=f"level of the {chance_name(one.attrs)}")
        axes.set_ylim(bottom, max(top, height + 0.1 * (top - bottom)))


def _mean_baseline(one: xr.Dataset) -> float:
    return float(one["baseline_loss"].mean()) if "baseline_loss" in one else 0.0


def _shade_burnin(axes: Axes, sweep: xr.Dataset, draws: np.ndarray) -> None:
    num_burnin_steps = int(sweep.attrs.get("num_burnin_steps", 0))
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


def _spread(size: int, most: int = 8) -> list[int]:
    """Return at most ``most`` indices below ``size``, about evenly spaced in their logarithm."""
    if size <= most:
        return list(range(size))
    return sorted({round(index) - 1 for index in np.geomspace(1, size, most)})


def _ordered_colors(count: int) -> list[Any]:
    """Return colours for an ordered family of lines; one line alone is ink."""
    if count == 1:
        return [INK]
    return [matplotlib.colormaps["cividis"](fraction) for fraction in np.linspace(0.0, 0.85, count)]


def _legend(axes: Axes) -> None:
    """Put a legend inside small axes, where it must not take part in the layout."""
    handles, labels = _entries(axes)
    if handles:
        legend = axes.legend(
            handles, labels, fontsize=7.5, framealpha=0.8, edgecolor="none", ncols=1 + len(labels) // 4
        )
        legend.set_in_layout(False)


def _legend_below(figure: Figure, *all_axes: Axes, num_columns: int = 5) -> None:
    """Put one legend for all axes under the figure, where it covers no data."""
    handles, labels = _entries(*all_axes)
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, fontsize=8.5, frameon=False)


def _entries(*all_axes: Axes) -> tuple[list[Any], list[str]]:
    """Return handles and labels of legends without repetition."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _title(axes: Axes, text: str, lines_below: int = 0) -> None:
    axes.set_title(_plain(text), loc="left", fontsize=9.5, color=INK, pad=5 + 9 * lines_below)


def _plain(text: str) -> str:
    """Return text to be drawn letter by letter: a dollar sign from a file must not start a formula."""
    return str(text).replace("$", r"\$")
