"""What a curve and its stages owe to the choice of hyperparameters, chains and draws."""

from __future__ import annotations

import dataclasses

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from llcjax.boundaries import Boundary
from llcjax.stages import llc_stages
from llcjax.types import CHAIN, GROUP

HYPERPARAMETERS = ("n_beta", "localization", "step_size")
SAME_LLC = 0.15
"""Two LLCs whose difference is a smaller share of the larger one are the same."""
SAME_STDERR = 2.0
"""Two LLCs that differ by fewer standard errors are the same."""


def neighbors(table: xr.Dataset, setting: int, name: str) -> list[int]:
    """Settings with the next lower and the next higher value of one hyperparameter, all others equal.

    Args:
        table: anything with the coordinates of a sweep's settings (and `sampler` where sweeps were joined). Where it
            has `step_level`, settings of one level count as having the same step size.
        setting: index of a setting.
        name: n_beta, localization or step_size.
    """
    step = "step_level" if "step_level" in table.coords else "step_size"
    fixed = (
        ("n_beta", "localization", "sampler") if name == "step_size" else ("n_beta", "localization", "sampler", step)
    )
    others = [other for other in fixed if other != name and other in table.coords]
    alike = np.ones(table.sizes["setting"], bool)
    for other in others:
        alike &= table[other].values == table[other].values[setting]
    values, here = table[name].values, table[name].values[setting]
    below, above = alike & (values < here), alike & (values > here)
    lower = [int(np.argmax(np.where(below, values, -np.inf)))] if below.any() else []
    return lower + ([int(np.argmin(np.where(above, values, np.inf)))] if above.any() else [])


def llc_difference(
    one: xr.Dataset, other: xr.Dataset, *, paired: bool = True
) -> tuple[Float[np.ndarray, " checkpoint"], Float[np.ndarray, " checkpoint"]]:
    """LLC of one setting minus that of another, with its standard error.

    Args:
        one: estimates at one setting.
        other: estimates at the other.
        paired: whether chains of the same number share batches and noise, as within a sweep: their differences then
            lose what is common. Without it, or with a single chain, the two errors are added in squares.
    """
    difference = one["llc"].values - other["llc"].values
    pairs = one["llc_per_chain"].values - other["llc_per_chain"].values
    if not paired or pairs.shape[-1] < 2:
        return difference, np.hypot(one["llc_stderr"].values, other["llc_stderr"].values)
    return difference, pairs.std(-1, ddof=1) / np.sqrt(pairs.shape[-1])


def same_llc(one: xr.Dataset, other: xr.Dataset, *, paired: bool = True) -> Bool[np.ndarray, " checkpoint"]:
    """Whether the LLCs of two settings differ by less than 15% or by less than 2 standard errors."""
    difference, error = llc_difference(one, other, paired=paired)
    scale = np.maximum(np.abs(one["llc"].values), np.abs(other["llc"].values))
    with np.errstate(invalid="ignore"):
        return np.abs(difference) <= np.maximum(SAME_LLC * scale, SAME_STDERR * error)


def curve_sensitivity(table: xr.Dataset, setting: int = 0) -> xr.Dataset:
    """How far the LLC moves to the neighboring settings of the same sweep.

    Args:
        table: what `llcjax.estimates` returns.
        setting: index of the setting in the middle.

    Returns:
        `llc (checkpoint)`, and `lower`, `upper (hyperparameter, checkpoint)`: the least and the largest LLC of the
        setting and its neighbors in one hyperparameter. Only hyperparameters with neighbors are in it.
    """
    llc = table["llc"].transpose(*GROUP).values
    found = {name: neighbors(table, setting, name) for name in HYPERPARAMETERS}
    varied = [name for name in HYPERPARAMETERS if found[name]]
    groups = [llc[:, [setting, *found[name]]] for name in varied]
    empty = np.empty((0, len(llc)))
    dims = ("hyperparameter", "checkpoint")
    return xr.Dataset(
        {
            "llc": ("checkpoint", llc[:, setting]),
            "lower": (dims, np.stack([group.min(1) for group in groups]) if groups else empty),
            "upper": (dims, np.stack([group.max(1) for group in groups]) if groups else empty),
        },
        coords={"checkpoint": table["checkpoint"].values, "hyperparameter": np.array(varied, str)},
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageVariant:
    """The boundaries that a part of the draws, or a neighboring setting, gives."""

    name: str
    """What was left out or changed."""
    boundaries: tuple[Boundary, ...]
    matched: tuple[float | None, ...]
    """For each boundary of the whole: the step of the one that stands for it here, or None."""
    problem: str = ""
    """Why there are no stages, where there are none."""


def stage_sensitivity(
    table: xr.Dataset, *, setting: int = 0, loss: np.ndarray | None = None
) -> tuple[StageVariant, ...]:
    """Stage boundaries from halves of the chains, halves of the draws, and neighboring settings.

    Nothing is sampled or read again. A variant's boundary stands for the nearest one of the whole, if it lies within
    half an e-fold of step + 1 of it, or within half the width of its 90% interval where that is wider.

    Args:
        table: what `llcjax.estimates` returns.
        setting: index of the setting whose stages are in question.
        loss: `(checkpoint,)` loss for the stages, as for `llcjax.llc_stages`.

    Returns:
        The whole first, then each variant.

    Raises:
        ValueError: the whole curve has no stages to begin with.
    """
    whole = llc_stages(table, loss, setting=setting).boundaries
    result = [StageVariant(name="all chains and draws", boundaries=whole, matched=tuple(b.step for b in whole))]
    for name, variant in _variants(table, setting):
        try:
            found = llc_stages(variant, loss).boundaries
        except ValueError as error:
            result.append(StageVariant(name=name, boundaries=(), matched=(None,) * len(whole), problem=str(error)))
            continue
        result.append(StageVariant(name=name, boundaries=found, matched=_matched(whole, found)))
    return tuple(result)


def _variants(table: xr.Dataset, setting: int) -> list[tuple[str, xr.Dataset]]:
    one = table.isel(setting=[setting])
    chains, halves = one["llc_per_chain"].values, one["llc_per_chain_half"].transpose(..., "half").values
    count, variants = chains.shape[-1], []
    if count >= 4:
        variants += [("first half of the chains", _thinned(one, chains[..., : count // 2]))]
        variants += [("second half of the chains", _thinned(one, chains[..., count // 2 :]))]
    if table.attrs.get("num_draws", 0) >= 8:
        variants += [("first half of the draws", _thinned(one, halves[..., 0]))]
        variants += [("second half of the draws", _thinned(one, halves[..., 1]))]
    for name in HYPERPARAMETERS:
        for other in neighbors(table, setting, name):
            label = f"{name} {float(table[name].values[other]):.4g} for {float(table[name].values[setting]):.4g}"
            variants.append((label, table.isel(setting=[other])))
    return variants


def _thinned(one: xr.Dataset, per_chain: Float[np.ndarray, "checkpoint setting chain"]) -> xr.Dataset:
    """The estimates that `llc_stages` reads, from LLCs of chains; verdicts stay those of the whole."""
    count = per_chain.shape[-1]
    error = per_chain.std(-1, ddof=1) / np.sqrt(count) if count > 1 else np.full(per_chain.shape[:2], np.nan)
    return one.drop_dims("chain").assign(
        llc=(GROUP, per_chain.mean(-1)), llc_stderr=(GROUP, error), llc_per_chain=(CHAIN, per_chain)
    )


def _matched(whole: tuple[Boundary, ...], found: tuple[Boundary, ...]) -> tuple[float | None, ...]:
    """The step that stands for each boundary of the whole; one found boundary stands for at most one."""
    if not whole or not found:
        return (None,) * len(whole)
    gaps = np.abs(np.subtract.outer(_place(whole), _place(found)))
    # Each found boundary speaks for the nearest one of the whole alone.
    gaps[np.arange(len(whole))[:, None] != gaps.argmin(0)] = np.inf
    return tuple(
        found[int(gap.argmin())].step if gap.min() <= _reach(boundary) else None
        for boundary, gap in zip(whole, gaps, strict=True)
    )


def _place(boundaries: tuple[Boundary, ...]) -> np.ndarray:
    return np.log1p([boundary.step for boundary in boundaries])


def _reach(boundary: Boundary) -> float:
    """How far the same boundary may be found, in e-folds of step + 1."""
    half_width = (np.log1p(boundary.upper) - np.log1p(boundary.lower)) / 2
    return max(0.5, float(np.nan_to_num(half_width)))
