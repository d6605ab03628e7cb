"""The setting to use, and why; or why there is none, and what to change in the grid."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Bool

from llcjax.calibrate.criteria import CRITERIA, at_all
from llcjax.verdicts import FREE, TRAINED


def recommend(
    table: xr.Dataset, judged: xr.Dataset, candidates: Bool[np.ndarray, " setting"] | None = None
) -> tuple[int | None, tuple[str, ...]]:
    """The setting to use by the rule of this module, or None; and the reasons.

    Args:
        table: estimates.
        judged: what `judge_settings` returns.
        candidates: which settings may be recommended; None for all. The others are neighbors to compare with.
    """
    candidates = np.ones(table.sizes["setting"], bool) if candidates is None else candidates
    trained = judged["trained"].values
    if not trained.any():
        return None, (f"no checkpoint is trained: none has a loss below {TRAINED:g} of chance; choose later ones.",)
    fitting = np.flatnonzero(at_all(judged, tuple(CRITERIA)) & candidates)
    if fitting.size == 0:
        several = len(np.unique(table["step_size"].values)) > 1
        return None, _nearest_miss(table.isel(setting=candidates), judged.isel(setting=candidates), several)
    best = min(fitting.tolist(), key=lambda setting: _rank(table.isel(setting=setting), judged.isel(setting=setting)))
    counted = f"one of {fitting.size} of {candidates.sum()} settings that pass every check"
    return best, _reasons(table, judged, best, counted)


def _rank(one: xr.Dataset, judged: xr.Dataset) -> tuple[float, ...]:
    trained = judged["trained"].values
    downhill = (one["verdict"].values[trained] == "not_minimum").sum()
    no_plateau = (~judged["localization_plateau"].values[trained]).sum()
    free = (judged["free_share"].values[trained] >= FREE).sum()
    return float(downhill), float(free), float(no_plateau), float(one["localization"]), _relative_error(one, trained)


def _relative_error(one: xr.Dataset, trained: np.ndarray) -> float:
    llc, error = one["llc"].values[trained], one["llc_stderr"].values[trained]
    return float(np.mean(error / np.maximum(np.abs(llc), 1.0)))


def describe(one: xr.Dataset) -> str:
    """One setting in a few words."""
    words = f"n_beta {float(one['n_beta']):.4g}, localization {float(one['localization']):.4g}, "
    words += f"step size {float(one['step_size']):.3g}"
    sampler = str(one["sampler"].item()) if "sampler" in one.coords else "sgld"
    return words if sampler == "sgld" else f"{sampler}, {words}"


def _reasons(table: xr.Dataset, judged: xr.Dataset, best: int, counted: str) -> tuple[str, ...]:
    trained = judged["trained"].values
    one, here = table.isel(setting=best), judged.isel(setting=best)
    count = int(trained.sum())
    reasons = [f"{describe(one)}: {counted}."]
    if np.isfinite(here["lift"].values).any():
        most = np.nanmax(here["lift"].values)
        reasons.append(f"local: the loss rises by at most {most:.0%} of the way to chance at {count} checkpoints.")
    if np.isfinite(here["free_share"].values[trained]).any():
        reasons.append(_held_reason(here["free_share"].values[trained]))
    reasons.append(f"mixed: R-hat is at most {one['rhat'].values[trained].max():.3f}.")
    if np.isfinite(here["acceptance"].values).any():
        reasons.append(f"acceptance: MALA would accept {np.nanmin(here['acceptance'].values):.0%} of moves or more.")
    reasons.append("step size: a neighboring step size gives the same LLC at every trained checkpoint.")
    flat = int(here["localization_plateau"].values[trained].sum())
    reasons.append(_localization_reason(flat, count))
    if downhill := int((one["verdict"].values[trained] == "not_minimum").sum()):
        reasons.append(f"at {downhill} of {count} checkpoints the chains walk downhill: these are no minima.")
    reasons.append(f"precision: standard errors average {_relative_error(one, trained):.1%} of the LLC.")
    return tuple(reasons)


def _held_reason(share: np.ndarray) -> str:
    """Whether the loss holds the chains, or the localisation alone does."""
    known = share[np.isfinite(share)]
    free = int((known >= FREE).sum())
    rise = f"of the rise of draws from the localisation prior alone, up to {known.max():.0%}"
    if not free:
        return f"held by the loss: it rises by {np.median(known):.0%} (median) {rise}."
    return (
        f"at {free} of {known.size} checkpoints the localisation alone holds the chains, whose loss has {FREE:.0%} or "
        f"more {rise}: there the LLC is a sharpness at the scale of the localisation; try a larger n_beta."
    )


def _localization_reason(flat: int, count: int) -> str:
    if flat == count:
        return "localization: a neighboring value gives the same LLC at every trained checkpoint."
    return (
        f"localization: the LLC is the same at a neighboring value at only {flat} of {count} checkpoints, so compare "
        "LLCs at this localization alone."
    )


def _nearest_miss(table: xr.Dataset, judged: xr.Dataset, several: bool) -> tuple[str, ...]:
    """Why no setting qualifies, and what the best of them lacks; `several` tells that step sizes were compared."""
    trained = judged["trained"].values
    passed = np.stack([judged[name].values[trained] for name in CRITERIA])
    # Fewest failed checks; among equals the smallest rise of the loss.
    with np.errstate(invalid="ignore"):
        lift = np.nan_to_num(np.where(trained[:, None], judged["lift"].values, 0.0), nan=np.inf).max(0)
    nearest = int(np.lexsort((lift, (~passed).sum((0, 1))))[0])
    reasons = [f"no setting of {table.sizes['setting']} passes every check at all {trained.sum()} trained checkpoints."]
    steps = table["checkpoint"].values[trained]
    for name, ok in zip(CRITERIA, passed[:, :, nearest], strict=True):
        if not ok.all():
            where = ", ".join(f"{step:,}" for step in steps[~ok])
            reasons.append(f"nearest miss, {describe(table.isel(setting=nearest))}: {CRITERIA[name]} at step {where}.")
    reasons += _advice(passed, several)
    return tuple(reasons)


def _advice(passed: np.ndarray, several: bool) -> list[str]:
    """What to change in the grid, from what fails at every setting."""
    never = dict(zip(CRITERIA, np.asarray(~np.asarray(passed.all(1)).any(1)), strict=True))
    advice = {
        "alive": "add smaller step sizes.",
        "local": "add larger values of localization or n_beta.",
        "mixed": "take more burn-in and more draws, or larger step sizes.",
        "unbiased": "add smaller step sizes.",
    }
    found = [f"no setting passes '{name}' everywhere: {words}" for name, words in advice.items() if never[name]]
    if not several:
        found.append("the grid has one step size only, so no plateau can be seen: give at least two.")
    elif not found and never["step_plateau"]:
        found.append("no two neighboring step sizes agree: put step sizes closer together and take longer chains.")
    return found
