"""What a setting must satisfy at a checkpoint: the criteria, each measured on the sweep over the grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool

from llcjax.estimators import kept_draws
from llcjax.sensitivity import neighbors, same_llc
from llcjax.types import GROUP
from llcjax.verdicts import RHAT_LIMIT, free_share, is_trained, lift

LIFT_LIMIT = 0.2
"""Largest rise of the loss, as a share of the way from L(w*) to chance, at which chains count as local."""
DEAD = ("diverged", "failed")
FAR = ("left_basin",)
UNMIXED = ("not_mixed", "stuck")
BIASED = ("biased",)
CRITERIA = {
    "alive": "chains diverged",
    "local": f"chains rise more than {LIFT_LIMIT:.0%} of the way to chance",
    "mixed": "chains do not agree or have not moved",
    "unbiased": "the step size biases the variance",
    "step_plateau": "the LLC changes with the step size",
}
"""What a recommended setting must satisfy, with what is said where it does not."""


def judge_settings(facts: xr.Dataset, table: xr.Dataset) -> xr.Dataset:
    """The criteria at every checkpoint and setting.

    Args:
        facts: the sweep.
        table: its estimates.

    Returns:
        `(checkpoint, setting)`: `lift` = (mean loss - L(w*)) / (chance - L(w*)), NaN where chance is not known;
        `free_share`, the same with draws from the localisation prior in the place of chance, NaN without them;
        `acceptance`, the mean MALA acceptance, NaN where it was not recorded; and the booleans `alive`, `local`,
        `mixed`, `unbiased`, `sound` (all of these), `step_plateau`, `localization_plateau`. `trained (checkpoint)`.
    """
    verdict = table["verdict"].values.astype(str)
    init, mean = table["init_loss"].values, table["mean_loss"].values
    chance = float(facts.attrs.get("chance", np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        start = _anchor_loss(facts)
        trained = is_trained(start, chance) if np.isfinite(chance) else np.ones(len(start), bool)
        risen = np.where(trained[:, None], lift(init, mean, chance), np.nan)
        local = ~np.isin(verdict, FAR) & ~(risen > LIFT_LIMIT)
        mixed = ~np.isin(verdict, UNMIXED) & (table["rhat"].values <= RHAT_LIMIT)
    # R-hat is asked for beside the verdict, because a graver verdict hides that chains do not mix.
    criteria = {
        "alive": ~np.isin(verdict, DEAD) & np.isfinite(table["llc"].values),
        "local": local,
        "mixed": mixed,
        "unbiased": ~np.isin(verdict, BIASED),
    }
    sound = np.asarray(np.stack(list(criteria.values())).all(0))
    return xr.Dataset(
        {
            "lift": (GROUP, risen),
            "free_share": (GROUP, free_share(table).transpose(*GROUP).values),
            "acceptance": (GROUP, _acceptance(facts, table)),
            **{name: (GROUP, values) for name, values in criteria.items()},
            "sound": (GROUP, sound),
            "step_plateau": (GROUP, _plateau(table, sound, "step_size")),
            "localization_plateau": (GROUP, _plateau(table, sound, "localization")),
            "trained": ("checkpoint", trained),
        },
        coords=table.coords,
    )


def _anchor_loss(facts: xr.Dataset) -> np.ndarray:
    """L(w*) of each checkpoint, which is known even where every chain is lost."""
    name = "baseline_loss" if "baseline_loss" in facts else "init_loss"
    return facts[name].mean([dim for dim in facts[name].dims if dim != "checkpoint"]).values


def _acceptance(facts: xr.Dataset, table: xr.Dataset) -> np.ndarray:
    if "acceptance" not in facts:
        return np.full(table["llc"].shape, np.nan)
    recorded = facts["acceptance"].isel(draw=kept_draws(facts))
    return recorded.mean(("chain", "draw")).transpose(*GROUP).values


def _plateau(table: xr.Dataset, sound: np.ndarray, name: str) -> Bool[np.ndarray, "checkpoint setting"]:
    """Whether a sound setting has a sound neighbor in one hyperparameter that gives the same LLC."""
    result = np.zeros(sound.shape, bool)
    for setting in range(sound.shape[1]):
        for other in neighbors(table, setting, name):
            same = same_llc(table.isel(setting=setting), table.isel(setting=other))
            result[:, setting] |= sound[:, setting] & sound[:, other] & same
    return result


def at_all(judged: xr.Dataset, names: Sequence[str]) -> Bool[np.ndarray, " setting"]:
    """Whether each setting satisfies every named criterion at all trained checkpoints."""
    trained = judged["trained"].values
    passed = np.asarray(np.stack([judged[name].values for name in names]).all(0))
    return np.asarray(passed[trained].all(0)) if trained.any() else np.zeros(passed.shape[1], bool)
