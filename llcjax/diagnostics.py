"""Health of chains, and the verdict on an estimate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats
from jaxtyping import Bool, Float

VERDICTS = (
    "ok",
    "noisy",
    "biased",
    "not_minimum",
    "left_basin",
    "not_mixed",
    "stuck",
    "diverged",
    "failed",
)

RHAT_LIMIT = 1.1
"""Above this, chains disagree more than their own spread allows (Vehtari et al. 2021 ask for 1.01 of long chains)."""
NOISE_LIMIT = 0.2
"""Standard error that is tolerated, as a share of max(|LLC|, 1)."""
DISCRETISATION_LIMIT = 0.05
"""step_size * localization / 4 is the relative bias of the variance in flat directions."""
EXPLOSION = 5.0
"""Distances beyond this multiple of the localisation's own scale sqrt(num_params / localization) are a divergence."""


class Verdict(NamedTuple):
    """What an estimate is worth."""

    name: str
    """One of `VERDICTS`."""
    sentence: str
    """Why, and which setting to change."""


def health(
    trace: Float[np.ndarray, "checkpoint setting chain draw"],
    usable: Bool[np.ndarray, "checkpoint setting chain"],
) -> dict[str, Float[np.ndarray, "checkpoint setting"]]:
    """Rank-normalised split R-hat, bulk and tail ESS, and the Monte-Carlo error of the mean, a group.

    (Vehtari et al. 2021, arXiv 1903.08008.) NaN where there are fewer than 4 draws or a trace is constant.
    """
    measures = {
        "rhat": lambda x: array_stats.rhat(x, chain_axis=-2, draw_axis=-1),
        "ess_bulk": lambda x: array_stats.ess(x, chain_axis=-2, draw_axis=-1, method="bulk"),
        "ess_tail": lambda x: array_stats.ess(x, chain_axis=-2, draw_axis=-1, method="tail", prob=(0.05, 0.95)),
        "llc_mcse": lambda x: array_stats.mcse(x, chain_axis=-2, draw_axis=-1),
    }
    result = {name: np.full(trace.shape[:2], np.nan) for name in measures}
    if trace.shape[-1] < 4:
        return result
    for chains in np.unique(usable.reshape(-1, usable.shape[-1]), axis=0):
        if not chains.any():
            continue
        # Groups that lost the same chains are measured in one call.
        groups = (usable == chains).all(-1)
        some = trace[groups][:, chains]
        varied = np.ptp(some, axis=(1, 2)) > 0
        for name, measure in measures.items():
            values = np.full(len(some), np.nan)
            if varied.any():
                with np.errstate(all="ignore"):
                    values[varied] = measure(some[varied])
            result[name][groups] = values
    return result


def verdicts(sweep: xr.Dataset, estimate: xr.Dataset, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The verdict on every checkpoint and setting, as arrays of names and of sentences."""
    distance = sweep["distance"].isel(draw=kept).transpose("checkpoint", "setting", "chain", "draw").values
    farthest = np.where(np.isfinite(distance), distance, -np.inf).max((2, 3))
    done, total = sweep["num_draws_done"].values, sweep.sizes["draw"]
    shape = estimate["llc"].shape
    names, sentences = np.empty(shape, "U16"), np.empty(shape, object)
    for index in np.ndindex(*shape):
        group = estimate.isel(checkpoint=index[0], setting=index[1])
        verdict = _judge(
            group,
            chance=sweep.attrs.get("chance"),
            num_chains=sweep.sizes["chain"],
            done=int(done[index]),
            total=total,
            growth=_growth(distance[index]),
            farthest=float(farthest[index]),
            num_params=int(sweep.attrs["num_params"]),
            num_steps=int(sweep["draw"].values[-1]) + 1,
        )
        names[index], sentences[index] = verdict
    return names, sentences.astype(str)


def _growth(distance: Float[np.ndarray, "chain draw"]) -> float:
    """Mean distance from w* in the last tenth of the draws over that around the middle: sqrt(2) for free diffusion."""
    draws = distance.shape[-1]
    width = max(draws // 10, 1)
    middle = distance[:, draws // 2 - width // 2 :][:, :width]
    with np.errstate(all="ignore"):
        return float(np.nanmean(distance[:, -width:]) / np.nanmean(middle)) if draws > 1 else float("nan")


def _judge(
    group: xr.Dataset,
    *,
    chance: float | None,
    num_chains: int,
    done: int,
    total: int,
    growth: float,
    farthest: float,
    num_params: int,
    num_steps: int,
) -> Verdict:
    """The first rule that applies, from the gravest to the mildest."""
    value = {name: float(group[name]) for name in ("llc", "llc_stderr", "llc_upper", "rhat", "mean_loss", "init_loss")}
    step_size, localization = float(group["step_size"]), float(group["localization"])
    used = int(group["num_chains_used"])
    if done < total:
        return Verdict("failed", f"only {done} of {total} draws are there; run the sweep again to finish it.")
    if used == 0:
        return Verdict("failed", f"every chain met a loss that is not finite; lower step_size={step_size:g}.")
    if used < num_chains:
        lost = num_chains - used
        return Verdict(
            "diverged",
            f"{lost} of {num_chains} chains met a loss that is not finite; lower step_size={step_size:g}.",
        )
    scale = np.sqrt(num_params / localization) if localization else np.inf
    if farthest > EXPLOSION * scale:
        return Verdict(
            "diverged",
            f"the chains ran {farthest:.3g} away, where the localisation allows {scale:.3g}; "
            f"lower step_size={step_size:g}.",
        )
    relaxed = step_size * localization * num_steps / 2
    if growth > 1.3 and relaxed < 0.02 and abs(value["llc"]) < 1:
        return Verdict(
            "stuck",
            f"the chains still drift away freely after {relaxed:.2g} relaxation times of the localisation; "
            f"raise step_size={step_size:g} or take more draws.",
        )
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
    if value["rhat"] > RHAT_LIMIT:
        return Verdict(
            "not_mixed",
            f"R-hat is {value['rhat']:.2f}: the chains disagree or still drift; take more draws and more burn-in.",
        )
    if step_size * localization / 4 > DISCRETISATION_LIMIT:
        bias = step_size * localization / 4
        return Verdict(
            "biased",
            f"the discrete step inflates variances by about {bias:.0%}; lower step_size={step_size:g}.",
        )
    if value["llc_stderr"] > NOISE_LIMIT * max(abs(value["llc"]), 1.0):
        return Verdict(
            "noisy",
            f"the standard error is {value['llc_stderr']:.2g}; take more chains or draws, or a larger batch.",
        )
    if chance is not None and value["init_loss"] >= chance:
        return Verdict(
            "ok",
            "chains agree; but w* is no better than a trivial predictor, so nothing tells whether they stayed local.",
        )
    return Verdict("ok", "chains agree, stay local and are precise enough.")
