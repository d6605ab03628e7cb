"""What an estimate is worth: one verdict a checkpoint and setting. `llcjax.curve_verdict` judges whole curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from llcjax.samplers import FULL_BATCH, step_share
from llcjax.types import GROUP

VERDICTS = ("ok", "noisy", "biased", "not_minimum", "left_basin", "not_mixed", "stuck", "diverged", "failed")

RHAT_LIMIT = 1.1
"""Above this, chains disagree more than their own spread allows (Vehtari et al. 2021 ask for 1.01 of long chains)."""
NOISE_LIMIT = 0.2
"""Standard error that is tolerated, as a share of max(|LLC|, 1)."""
DISCRETISATION_LIMIT = 0.05
"""step_size * localization / 4 is the relative bias of the variance in flat directions."""
HEATING_LIMIT = 0.25
"""What step size and noise of the batches may add to the LLC, as a share of max(|LLC|, 1)."""
EXPLOSION = 5.0
"""Distances beyond this multiple of the localisation's own scale are a divergence."""
SAME_LOSS = 0.01
"""Mean sampled losses that differ by less than this share are the same."""
TRAINED = 0.9
"""A checkpoint is trained if L(w*) is below this share of chance; nearer to it, chance tells nothing about w*."""
LOST = 0.5
"""Share of the way from L(w*) to chance; chains of a trained checkpoint that rise further have left its basin."""
FREE = 0.8
"""Share of the way from L(w*) to the loss of draws from the localisation prior from which on it is the prior that holds
the chains, and hardly the loss."""


class Verdict(NamedTuple):
    """What an estimate is worth."""

    name: str
    """One of `VERDICTS`."""
    sentence: str
    """Why, and which setting to change."""


def is_trained(init_loss: Any, chance: float) -> Any:
    """Whether L(w*) (number or array) beats chance by a tenth of it; losses may be negative."""
    return init_loss < chance - (1 - TRAINED) * abs(chance)


def lift(init_loss: Any, mean_loss: Any, chance: Any) -> Any:
    """How far the sampled loss is on the way from L(w*) to chance: 0 at L(w*), 1 at chance, negative below L(w*)."""
    return (mean_loss - init_loss) / (chance - init_loss)


def free_share(table: xr.Dataset) -> xr.DataArray:
    """How far the sampled loss rises, as a share of how far draws from the localisation prior alone rise.

    Where it is near 1 the loss does not shape the chains at all, and the LLC is n_beta times the rise of the loss under
    Gaussian noise of standard deviation 1 / sqrt(localization): a sharpness at one scale.

    Args:
        table: estimates; of a sweep with `num_control_draws`, or nothing is known.

    Returns:
        `(checkpoint, setting)`; NaN where the checkpoint is not trained, or draws from the prior do not rise, or none
        were made.
    """
    if "prior_loss" not in table:
        return xr.full_like(table["llc"], np.nan)
    init, prior = table["init_loss"], table["prior_loss"]
    chance = table.attrs.get("chance")
    known = np.isfinite(init) if chance is None else is_trained(init, float(chance))
    return lift(init, table["mean_loss"], prior).where(known & (prior > init))


def judge(sweep: xr.Dataset, estimate: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The verdict on every checkpoint and setting, as arrays `(checkpoint, setting)` of names and of sentences.

    Args:
        sweep: the facts.
        estimate: LLC, errors and health of each checkpoint and setting.
    """
    columns = {name: estimate[name].values for name in estimate.data_vars if estimate[name].dims == GROUP}
    columns |= {
        name: np.broadcast_to(estimate[name].values, estimate["llc"].shape) for name in ("step_size", "localization")
    }
    columns["done"] = sweep["num_draws_done"].values
    columns["first_nonfinite_step"] = sweep["first_nonfinite_step"].max("chain").values
    config = json.loads(str(sweep.attrs.get("config", "{}")))
    # How much of the first step size a decaying one keeps, on average.
    shares = step_share(
        sweep["draw"].values, config.get("step_size_decay", 0.0), config.get("step_size_decay_time", 1.0)
    )
    kept = sweep["draw"].values >= estimate.attrs.get("num_burnin_steps", 0)
    fixed = {
        "exact": float(config.get("sampler") in FULL_BATCH),
        "heating": np.nan,
        "mean_share": float(shares.mean()),
        "kept_share": float(shares[kept].mean()),
        "num_chains": sweep.sizes["chain"],
        "total": sweep.sizes["draw"],
        "num_steps": int(sweep["draw"].values[-1]) + 1,
        "chance": float(sweep.attrs.get("chance", np.nan)),
        "prior_loss": np.nan,
    }
    names = np.empty(estimate["llc"].shape, "U16")
    sentences = np.empty(estimate["llc"].shape, object)
    for index in np.ndindex(*names.shape):
        values = {**fixed, **{name: float(column[index]) for name, column in columns.items()}}
        names[index], sentences[index] = _judge(values)
    _spread_left_basin(names, sentences, columns["mean_loss"], fixed["chance"])
    return names, sentences.astype(str)


def _judge(value: Mapping[Any, float]) -> Verdict:
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
    relaxed = value["step_size"] * value["mean_share"] * value["localization"] * value["num_steps"] / 2
    if value["distance_growth"] > 1.3 and relaxed < 0.02 and abs(value["llc"]) < 1:
        return Verdict(
            "stuck",
            f"the chains still drift away freely after {relaxed:.2g} relaxation times of the localisation; "
            f"raise {step_size} or take more draws.",
        )
    return _judge_place(value) or _judge_precision(value)


def _judge_place(value: Mapping[Any, float]) -> Verdict | None:
    """Whether the chains sampled where they should."""
    if left := _left_basin(value):
        return Verdict("left_basin", f"{left}; raise localization or n_beta, or lower step_size.")
    if value["llc_upper"] < 0:
        return Verdict(
            "not_minimum",
            "the LLC is negative beyond its error: the chains walk downhill from a checkpoint that is no minimum; "
            "lower n_beta or raise localization.",
        )
    return None


def _left_basin(value: Mapping[Any, float]) -> str | None:
    """How the sampled loss shows that chains forgot the model, or None.

    It must rise through chance, and by a tenth of chance: any chain rises through it that starts just below and
    explores its own neighborhood. From a trained checkpoint half of the way is enough. Where chance tells nothing, the
    control that draws from the localisation prior does.
    """
    init, mean, chance, prior = (value[name] for name in ("init_loss", "mean_loss", "chance", "prior_loss"))
    drawn = f"the mean sampled loss {mean:.4g} is not below"
    if init < chance <= mean and mean - init >= (1 - TRAINED) * abs(chance):
        return f"{drawn} {chance:.4g}, that of a trivial predictor: the chains have forgotten the model"
    if is_trained(init, chance) and lift(init, mean, chance) > LOST:
        share = f"{lift(init, mean, chance):.0%} of the way from L(w*) = {init:.4g} to {chance:.4g}"
        return f"the mean sampled loss {mean:.4g} is {share}, that of a trivial predictor"
    if not is_trained(init, chance) and init < prior <= mean:
        return f"{drawn} {prior:.4g}, that of draws from the localisation prior: the loss does not hold the chains"
    return None


def _judge_precision(value: Mapping[Any, float]) -> Verdict:
    """Whether they sampled well and long enough."""
    more = "take more draws and more burn-in."
    if value["rhat"] > RHAT_LIMIT:
        return Verdict("not_mixed", f"R-hat is {value['rhat']:.2f}: the chains disagree or still drift; {more}")
    if abs(value["drift_z"]) > 5 and abs(value["drift"]) > NOISE_LIMIT * max(abs(value["llc"]), 1.0):
        return Verdict("not_mixed", f"the LLC still drifts by {value['drift']:.3g} from first to last third; {more}")
    if not (np.isfinite(value["rhat"]) and np.isfinite(value["llc_stderr"])):
        return Verdict("noisy", "there are too few draws or chains to judge, or they never moved; take more of both.")
    bias = value["step_size"] * value["kept_share"] * value["localization"] / 4
    if bias > DISCRETISATION_LIMIT and not value["exact"]:
        lower = f"lower step_size={value['step_size']:g}."
        return Verdict("biased", f"the discrete step inflates variances by about {bias:.0%}; {lower}")
    heating = value["heating"] * value["kept_share"]
    if heating > HEATING_LIMIT * max(abs(value["llc"]), 1.0):
        return Verdict(
            "biased",
            f"step size and noise of the batches add up to {heating:.3g} to the LLC; take a larger batch_size or lower "
            f"step_size={value['step_size']:g}.",
        )
    if value["llc_stderr"] > NOISE_LIMIT * max(abs(value["llc"]), 1.0):
        error = f"the standard error is {value['llc_stderr']:.2g}"
        return Verdict("noisy", f"{error}; take more chains or draws, or a larger batch.")
    chance = value["chance"]
    if np.isfinite(chance) and not is_trained(value["init_loss"], chance):
        return Verdict(
            "ok",
            f"chains agree; but L(w*) = {value['init_loss']:.4g} is not below {TRAINED:g} of {chance:.4g}, the loss of "
            "a trivial predictor, so the loss cannot tell whether they stayed local.",
        )
    return Verdict("ok", "chains agree, stay local and are precise enough.")


def _spread_left_basin(
    names: np.ndarray, sentences: np.ndarray, mean_loss: Float[np.ndarray, "checkpoint setting"], chance: float
) -> None:
    """Checkpoints at chance themselves whose draws are those of checkpoints that left the basin have left it too.

    Where the mean sampled loss does not depend on the checkpoint, the draws know nothing of it. In a local regime no
    trained checkpoint leaves, so nothing is spread to those that rise through chance because they start near it.
    """
    for setting in range(names.shape[1]):
        left = (names[:, setting] == "left_basin") & (mean_loss[:, setting] >= chance)
        if not left.any() or np.isnan(chance):
            continue
        level = float(np.median(mean_loss[left, setting]))
        same = np.abs(mean_loss[:, setting] - level) <= SAME_LOSS * abs(level)
        mild = np.isin(names[:, setting], ("ok", "noisy", "not_mixed", "biased"))
        for checkpoint in np.flatnonzero(same & mild & (mean_loss[:, setting] >= chance)):
            names[checkpoint, setting] = "left_basin"
            sentences[checkpoint, setting] = (
                f"the mean sampled loss {mean_loss[checkpoint, setting]:.4g} is that of checkpoints whose chains left "
                "the basin, whatever the checkpoint; raise localization or n_beta, or lower step_size."
            )
