"""What an estimate is worth: one verdict a checkpoint and setting, and what the whole curve says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from llcjax.samplers import FULL_BATCH

VERDICTS = ("ok", "noisy", "biased", "not_minimum", "left_basin", "not_mixed", "stuck", "diverged", "failed")

RHAT_LIMIT = 1.1
"""Above this, chains disagree more than their own spread allows (Vehtari et al. 2021 ask for 1.01 of long chains)."""
NOISE_LIMIT = 0.2
"""Standard error that is tolerated, as a share of max(|LLC|, 1)."""
DISCRETISATION_LIMIT = 0.05
"""step_size * localization / 4 is the relative bias of the variance in flat directions."""
EXPLOSION = 5.0
"""Distances beyond this multiple of the localisation's own scale are a divergence."""
SAME_LOSS = 0.01
"""Mean sampled losses that differ by less than this share are the same."""


class Verdict(NamedTuple):
    """What an estimate is worth."""

    name: str
    """One of `VERDICTS`."""
    sentence: str
    """Why, and which setting to change."""


def judge(sweep: xr.Dataset, estimate: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The verdict on every checkpoint and setting, as arrays `(checkpoint, setting)` of names and of sentences.

    Args:
        sweep: the facts.
        estimate: LLC, errors and health of each checkpoint and setting.
    """
    columns = {
        name: estimate[name].values for name in estimate.data_vars if estimate[name].dims == ("checkpoint", "setting")
    }
    columns |= {
        name: np.broadcast_to(estimate[name].values, estimate["llc"].shape) for name in ("step_size", "localization")
    }
    columns["done"] = sweep["num_draws_done"].values
    columns["first_nonfinite_step"] = sweep["first_nonfinite_step"].max("chain").values
    chance = _chance(sweep)
    exact = json.loads(str(sweep.attrs.get("config", "{}"))).get("sampler") in FULL_BATCH
    fixed = {
        "exact": float(exact),
        "num_chains": sweep.sizes["chain"],
        "total": sweep.sizes["draw"],
        "num_steps": int(sweep["draw"].values[-1]) + 1,
    }
    names = np.empty(estimate["llc"].shape, "U16")
    sentences = np.empty(estimate["llc"].shape, object)
    for index in np.ndindex(*names.shape):
        values = {**fixed, **{name: float(column[index]) for name, column in columns.items()}}
        names[index], sentences[index] = _judge(values, None if chance is None else float(chance[index]))
    if chance is not None:
        _spread_left_basin(names, sentences, columns["mean_loss"], chance)
    return names, sentences.astype(str)


def _chance(sweep: xr.Dataset) -> Float[np.ndarray, "checkpoint setting"] | None:
    """The loss that a chain must stay below: of a trivial predictor, else of draws from the localisation prior."""
    if "chance" in sweep.attrs:
        return np.full((sweep.sizes["checkpoint"], sweep.sizes["setting"]), float(sweep.attrs["chance"]))
    return sweep["prior_loss"].values if "prior_loss" in sweep else None


def _judge(value: Mapping[Any, float], chance: float | None) -> Verdict:
    """The first rule that applies, from the gravest to the mildest."""
    step_size = f"step_size={value['step_size']:g}"
    if value["done"] < value["total"]:
        done = f"{value['done']:.0f} of {value['total']:.0f}"
        return Verdict("failed", f"only {done} draws are there; run the sweep again to finish it.")
    lost = value["num_chains"] - value["num_chains_used"]
    if lost:
        if value["num_chains_used"] == 0 and value["first_nonfinite_step"] == 0:
            return Verdict(
                "failed", "the loss of the checkpoint itself is not finite; look at its parameters and the data."
            )
        every = "every chain" if value["num_chains_used"] == 0 else f"{lost:.0f} of {value['num_chains']:.0f} chains"
        name = "failed" if value["num_chains_used"] == 0 else "diverged"
        return Verdict(name, f"{every} met a loss that is not finite; lower {step_size}.")
    if value["farthest"] > EXPLOSION * value["distance_scale"]:
        where = f"{value['farthest']:.3g} away, where the localisation allows {value['distance_scale']:.3g}"
        return Verdict("diverged", f"the chains ran {where}; lower {step_size}.")
    relaxed = value["step_size"] * value["localization"] * value["num_steps"] / 2
    if value["distance_growth"] > 1.3 and relaxed < 0.02 and abs(value["llc"]) < 1:
        return Verdict(
            "stuck",
            f"the chains still drift away freely after {relaxed:.2g} relaxation times of the localisation; "
            f"raise {step_size} or take more draws.",
        )
    return _judge_place(value, chance) or _judge_precision(value, chance)


def _judge_place(value: Mapping[Any, float], chance: float | None) -> Verdict | None:
    """Whether the chains sampled where they should."""
    if chance is not None and value["init_loss"] < chance <= value["mean_loss"]:
        return Verdict(
            "left_basin",
            f"the mean sampled loss {value['mean_loss']:.4g} is not below {chance:.4g}, that of a trivial predictor: "
            "the chains have forgotten the model; raise localization or n_beta, or lower step_size.",
        )
    if value["llc_upper"] < 0:
        return Verdict(
            "not_minimum",
            "the LLC is negative beyond its error: the chains walk downhill from a checkpoint that is no minimum; "
            "lower n_beta or raise localization.",
        )
    return None


def _judge_precision(value: Mapping[Any, float], chance: float | None) -> Verdict:
    """Whether they sampled well and long enough."""
    more = "take more draws and more burn-in."
    if value["rhat"] > RHAT_LIMIT:
        return Verdict("not_mixed", f"R-hat is {value['rhat']:.2f}: the chains disagree or still drift; {more}")
    if abs(value["drift_z"]) > 5 and abs(value["drift"]) > NOISE_LIMIT * max(abs(value["llc"]), 1.0):
        return Verdict("not_mixed", f"the LLC still drifts by {value['drift']:.3g} from first to last third; {more}")
    if not (np.isfinite(value["rhat"]) and np.isfinite(value["llc_stderr"])):
        return Verdict("noisy", "there are too few draws or chains to judge, or they never moved; take more of both.")
    bias = value["step_size"] * value["localization"] / 4
    if bias > DISCRETISATION_LIMIT and not value["exact"]:
        lower = f"lower step_size={value['step_size']:g}."
        return Verdict("biased", f"the discrete step inflates variances by about {bias:.0%}; {lower}")
    if value["llc_stderr"] > NOISE_LIMIT * max(abs(value["llc"]), 1.0):
        error = f"the standard error is {value['llc_stderr']:.2g}"
        return Verdict("noisy", f"{error}; take more chains or draws, or a larger batch.")
    if chance is not None and value["init_loss"] >= chance:
        return Verdict(
            "ok",
            "chains agree; but w* is no better than a trivial predictor, so nothing tells whether they stayed local.",
        )
    return Verdict("ok", "chains agree, stay local and are precise enough.")


def _spread_left_basin(
    names: np.ndarray, sentences: np.ndarray, mean_loss: np.ndarray, chance: Float[np.ndarray, "checkpoint setting"]
) -> None:
    """Checkpoints at chance themselves whose draws are those of checkpoints that left the basin have left it too.

    Where the mean sampled loss does not depend on the checkpoint, the draws know nothing of it.
    """
    for setting in range(names.shape[1]):
        left = names[:, setting] == "left_basin"
        if not left.any():
            continue
        level = float(np.median(mean_loss[left, setting]))
        same = np.abs(mean_loss[:, setting] - level) <= SAME_LOSS * level
        mild = np.isin(names[:, setting], ("ok", "noisy", "not_mixed", "biased"))
        for checkpoint in np.flatnonzero(same & mild & (mean_loss[:, setting] >= chance[:, setting])):
            names[checkpoint, setting] = "left_basin"
            sentences[checkpoint, setting] = (
                f"the mean sampled loss {mean_loss[checkpoint, setting]:.4g} is that of checkpoints whose chains left "
                "the basin, whatever the checkpoint; raise localization or n_beta, or lower step_size."
            )


class LossCopy(NamedTuple):
    """A stretch of an LLC curve that is the loss turned upside down: LLC = n_beta * (level - loss)."""

    start: int
    """First training step."""
    end: int
    """Last training step."""
    slope: float
    """Of the LLC on the loss; -n_beta where the mean sampled loss does not depend on the checkpoint."""
    correlation: float
    level: float
    """The mean sampled loss there."""

    @property
    def sentence(self) -> str:
        """What this means."""
        return (
            f"From step {self.start:,} to {self.end:,} the LLC is the loss turned upside down: slope {self.slope:.4g} "
            f"on the loss, correlation {self.correlation:.3f}, mean sampled loss {self.level:.3g} throughout. "
            "There the curve carries no information beyond the loss."
        )


def loss_copy(curve: xr.Dataset, *, tolerance: float = 0.03) -> LossCopy | None:
    """Finds the longest stretch of a curve that carries no information beyond the loss.

    The LLC is n_beta * (E[L(w)] - L(w*)). Where the chains forget the checkpoint, E[L(w)] is the same at all of
    them, and the LLC falls on a line of slope -n_beta over the loss.

    Args:
        curve: estimates at one setting, dimension `checkpoint`.
        tolerance: largest range of the mean sampled loss, as a share of the range of the loss; the slope of the LLC
            on the loss may be off -n_beta by twice that.

    Returns:
        The stretch over which the loss changes most, or None: it must hold at least 5 checkpoints and a tenth of the
        range of the loss.
    """
    curve = curve.isel(checkpoint=np.isfinite(curve["llc"].values)).sortby("checkpoint")
    loss, llc, n_beta = curve["init_loss"].values, curve["llc"].values, float(curve["n_beta"])
    sampled = curve["mean_loss"].values
    if loss.size < 5 or np.ptp(loss) == 0 or n_beta == 0:
        return None
    best, found = np.ptp(loss) / 10, None
    for start in range(loss.size - 4):
        for end in range(loss.size, start + 4, -1):
            part = slice(start, end)
            if np.ptp(loss[part]) <= best:
                break
            if np.ptp(sampled[part]) > tolerance * np.ptp(loss[part]):
                continue
            fit = _line(loss[part], llc[part])
            if abs(fit[0] / n_beta + 1) <= 2 * tolerance:
                best, found = np.ptp(loss[part]), (part, fit)
                break
    if found is None:
        return None
    part, (slope, correlation) = found
    steps = curve["checkpoint"].values[part]
    level = float(np.mean(curve["mean_loss"].values[part]))
    return LossCopy(int(steps[0]), int(steps[-1]), slope, correlation, level)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and correlation of y on x."""
    dx, dy = x - x.mean(), y - y.mean()
    scale = np.sqrt((dx @ dx) * (dy @ dy))
    return float(dx @ dy / (dx @ dx)), float(dx @ dy / scale) if scale > 0 else 0.0
