"""Choosing hyperparameters: a grid as one sweep, a judgement on each setting, and one setting recommended.

A setting is *sound* at a checkpoint if its chains survive, agree with each other, and stay local: the loss rises by at
most a fifth of the way from L(w*) to chance. A plateau in a hyperparameter is a pair of neighboring sound settings
whose LLCs are the same (`llcjax.sensitivity.same_llc`). What is asked of the recommended setting, at every trained
checkpoint (L(w*) below 0.9 of chance):

1. It is sound, and lies on a plateau in step size: otherwise the number belongs to the step size, not to the network.
2. Among those, in this order: fewest checkpoints at which the chains walk downhill; a plateau in localization at as
   many checkpoints as any other; the smallest localization, which looks farthest; the smallest relative error.

The localization is part of what is measured, so a plateau in it is wished for and not demanded; the reasons say
whether there is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool

from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.config_file import save_sweep_config
from llcjax.estimators import estimates, kept_draws
from llcjax.sensitivity import llc_difference, neighbors, same_llc
from llcjax.sweep import sweep
from llcjax.types import LossFn
from llcjax.verdicts import RHAT_LIMIT

LIFT_LIMIT = 0.2
"""Largest rise of the loss, as a share of the way from L(w*) to chance, at which chains count as local."""
TRAINED = 0.9
"""A checkpoint is trained if L(w*) is below this share of chance."""
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """LLC of chains that start at a draw from the localization prior, and of those that start at the checkpoint."""

    step: np.ndarray
    """(checkpoint,) training steps."""
    from_prior: np.ndarray
    from_anchor: np.ndarray
    difference: np.ndarray
    """From the prior minus from the anchor: 0 once the chains have forgotten their start."""
    stderr: np.ndarray
    """Standard error of the difference, paired chain by chain."""
    closed: np.ndarray
    """Whether the two sides are the same LLC."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a grid of settings says, and the setting to use."""

    facts: xr.Dataset
    """The sweep over the grid."""
    table: xr.Dataset
    """Its estimates."""
    judged: xr.Dataset
    """`lift`, `acceptance` and the criteria, each `(checkpoint, setting)`; `trained (checkpoint)`."""
    chosen: int | None
    """Index of the recommended setting."""
    recommended: SweepConfig | None
    """None where no setting is good enough; the reasons name the nearest miss."""
    reasons: tuple[str, ...]
    bracket: Bracket | None
    """The two-sided check of the recommended setting; None without one, or at localization 0."""

    @property
    def stable(self) -> Bool[np.ndarray, " setting"]:
        """Whether each setting is sound, and on plateaus in step size and localization, at all trained checkpoints."""
        return _at_all(self.judged, (*CRITERIA, "localization_plateau"))


def calibrate(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig | Sequence[SweepConfig],
    *,
    checkpoints: Sequence[int] | None = None,
    chance: float | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Calibration:
    """Runs a grid of settings at a few checkpoints, judges each and recommends one.

    Args:
        loss_fn: as for `llcjax.sweep`.
        bank: the checkpoints.
        data: as for `llcjax.sweep`.
        config: a grid: tuples of n_beta, localization and step_size. Several configs, such as one for each sampler,
            are swept one after the other and joined on `setting`.
        checkpoints: training steps to look at; None takes about five, spread over the loss curve.
        chance: loss of a trivial predictor. Without it nothing tells whether chains stay local, except verdicts.
        out: folder for the stores and for `calibrated.json`; None keeps everything in memory.
        progress: shows progress bars.

    Returns:
        The judgement; its `recommended` is a config for `llcjax.sweep` over the whole bank.

    Raises:
        ValueError: bad input, or configs that differ in the number of chains or draws.
    """
    configs = (config,) if isinstance(config, SweepConfig) else tuple(config)
    _check_configs(configs)
    folder = None if out is None else Path(out)
    chosen = spread_checkpoints(bank, chance) if checkpoints is None else bank.at_steps(list(checkpoints))
    known: dict[str, Any] = {"chance": chance, "progress": progress}
    parts = [
        sweep(loss_fn, chosen, data, _with_acceptance(one), out=_below(folder, f"grid_{one.sampler}"), **known)
        for one in configs
    ]
    facts = _joined(parts, configs)
    table = _joined([estimates(part) for part in parts], configs)
    judged = judge_settings(facts, table)
    setting, reasons = recommend(table, judged)
    recommended, bracket = None, None
    if setting is not None:
        recommended = _config_of(configs, table, setting)
        bracket = _bracket(loss_fn, chosen, data, recommended, table.isel(setting=setting), folder, known)
        reasons = (*reasons, _bracket_reason(bracket))
        if folder is not None:
            save_sweep_config(recommended, folder / "calibrated.json")
    return Calibration(
        facts=facts,
        table=table,
        judged=judged,
        chosen=setting,
        recommended=recommended,
        reasons=reasons,
        bracket=bracket,
    )


def _check_configs(configs: tuple[SweepConfig, ...]) -> None:
    if not configs:
        raise ValueError("config is empty; give at least one SweepConfig.")
    samplers = [config.sampler for config in configs]
    if len(set(samplers)) < len(samplers):
        raise ValueError(f"config names a sampler twice ({', '.join(samplers)}); give one config for each sampler.")
    for name in ("num_chains", "num_draws", "num_burnin_steps", "num_steps_between_draws"):
        if len({getattr(config, name) for config in configs}) > 1:
            raise ValueError(f"the configs differ in {name}; sweeps that are joined must have the same counts.")


def _with_acceptance(config: SweepConfig) -> SweepConfig:
    """The config with the acceptance of a few dozen moves a chain, where the sampler is SGLD."""
    if config.sampler != "sgld" or config.acceptance_every:
        return config
    return dataclasses.replace(config, acceptance_every=max(config.num_draws // 20, 1))


def _below(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name


def _joined(parts: list[xr.Dataset], configs: tuple[SweepConfig, ...]) -> xr.Dataset:
    """Sweeps, or their estimates, one after the other on `setting`, with the sampler of each setting."""
    named = [
        part.assign_coords(sampler=("setting", np.full(part.sizes["setting"], config.sampler)))
        for part, config in zip(parts, configs, strict=True)
    ]
    if len(named) == 1:
        return named[0]
    shared = set.intersection(*({str(name) for name in part.data_vars} for part in named))
    names = [str(name) for name in named[0].data_vars if name in shared]
    with_setting = [name for name in names if "setting" in named[0][name].dims]
    grown = xr.concat(
        [part[with_setting].load() for part in named], "setting", join="exact", coords="minimal", compat="override",
        combine_attrs="override",
    )  # fmt: skip
    rest = named[0][[name for name in names if name not in with_setting]]
    return grown.assign_coords(setting=np.arange(grown.sizes["setting"])).merge(rest).assign_attrs(named[0].attrs)


def spread_checkpoints(bank: CheckpointBank, chance: float | None = None, count: int = 5) -> CheckpointBank:
    """A few checkpoints, evenly spread along the loss curve over log(step + 1), the last one included.

    The training loss comes from the bank; where it has none, they are spread over log(step + 1) alone. Where `chance`
    is known, only trained checkpoints are taken, as long as there are any.
    """
    if len(bank) <= count:
        return bank
    place = np.log1p(bank.steps.astype(float))
    candidates = np.ones(len(bank), bool)
    path = place / place[-1]
    if "train_loss" in bank.metrics:
        # The least loss so far: the noise of the training loss must not look like a way travelled.
        loss = np.fmin.accumulate(np.asarray(bank.metrics["train_loss"], float))
        candidates = np.isfinite(loss) & (loss < (np.inf if chance is None else TRAINED * chance))
        candidates = candidates if candidates.any() else np.isfinite(loss)
        fall = np.nan_to_num(loss[candidates][0] - loss)
        path = path + np.maximum(fall, 0) / max(fall.max(), 1e-12)
    usable = np.flatnonzero(candidates)
    if usable.size == 0:
        usable = np.arange(len(bank))
    wanted = np.linspace(path[usable[0]], path[usable[-1]], count)
    return bank[np.unique([usable[np.argmin(np.abs(path[usable] - at))] for at in wanted])]


def judge_settings(facts: xr.Dataset, table: xr.Dataset) -> xr.Dataset:
    """The criteria at every checkpoint and setting.

    Args:
        facts: the sweep.
        table: its estimates.

    Returns:
        `(checkpoint, setting)`: `lift` = (mean loss - L(w*)) / (chance - L(w*)), NaN where chance is not known;
        `acceptance`, the mean MALA acceptance, NaN where it was not recorded; and the booleans `alive`, `local`,
        `mixed`, `unbiased`, `sound` (all of these), `step_plateau`, `localization_plateau`. `trained (checkpoint)`.
    """
    verdict = table["verdict"].values.astype(str)
    init, mean = table["init_loss"].values, table["mean_loss"].values
    chance = float(facts.attrs.get("chance", np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        start = _anchor_loss(facts)
        trained = start < TRAINED * chance if np.isfinite(chance) else np.ones(len(start), bool)
        lift = np.where(trained[:, None], (mean - init) / (chance - init), np.nan)
        local = ~np.isin(verdict, FAR) & ~(lift > LIFT_LIMIT)
        mixed = ~np.isin(verdict, UNMIXED) & (table["rhat"].values <= RHAT_LIMIT)
    # R-hat is asked for beside the verdict, because a graver verdict hides that chains do not mix.
    criteria = {
        "alive": ~np.isin(verdict, DEAD) & np.isfinite(table["llc"].values),
        "local": local,
        "mixed": mixed,
        "unbiased": ~np.isin(verdict, BIASED),
    }
    sound = np.asarray(np.stack(list(criteria.values())).all(0))
    group = ("checkpoint", "setting")
    return xr.Dataset(
        {
            "lift": (group, lift),
            "acceptance": (group, _acceptance(facts, table)),
            **{name: (group, values) for name, values in criteria.items()},
            "sound": (group, sound),
            "step_plateau": (group, _plateau(table, sound, "step_size")),
            "localization_plateau": (group, _plateau(table, sound, "localization")),
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
    return recorded.mean(("chain", "draw")).transpose("checkpoint", "setting").values


def _plateau(table: xr.Dataset, sound: np.ndarray, name: str) -> Bool[np.ndarray, "checkpoint setting"]:
    """Whether a sound setting has a sound neighbor in one hyperparameter that gives the same LLC."""
    result = np.zeros(sound.shape, bool)
    for setting in range(sound.shape[1]):
        for other in neighbors(table, setting, name):
            same = same_llc(table.isel(setting=setting), table.isel(setting=other))
            result[:, setting] |= sound[:, setting] & sound[:, other] & same
    return result


def _at_all(judged: xr.Dataset, names: Sequence[str]) -> Bool[np.ndarray, " setting"]:
    """Whether each setting satisfies every named criterion at all trained checkpoints."""
    trained = judged["trained"].values
    passed = np.asarray(np.stack([judged[name].values for name in names]).all(0))
    return np.asarray(passed[trained].all(0)) if trained.any() else np.zeros(passed.shape[1], bool)


def recommend(table: xr.Dataset, judged: xr.Dataset) -> tuple[int | None, tuple[str, ...]]:
    """The setting to use by the rule of this module, or None; and the reasons.

    Args:
        table: estimates.
        judged: what `judge_settings` returns.
    """
    trained = judged["trained"].values
    if not trained.any():
        return None, (f"no checkpoint is trained: none has a loss below {TRAINED:g} of chance; choose later ones.",)
    fitting = np.flatnonzero(_at_all(judged, tuple(CRITERIA)))
    if fitting.size == 0:
        return None, _nearest_miss(table, judged)
    best = min(fitting.tolist(), key=lambda setting: _rank(table.isel(setting=setting), judged.isel(setting=setting)))
    return best, _reasons(table, judged, best, fitting.size)


def _rank(one: xr.Dataset, judged: xr.Dataset) -> tuple[float, ...]:
    trained = judged["trained"].values
    downhill = (one["verdict"].values[trained] == "not_minimum").sum()
    no_plateau = (~judged["localization_plateau"].values[trained]).sum()
    return float(downhill), float(no_plateau), float(one["localization"]), _relative_error(one, trained)


def _relative_error(one: xr.Dataset, trained: np.ndarray) -> float:
    llc, error = one["llc"].values[trained], one["llc_stderr"].values[trained]
    return float(np.mean(error / np.maximum(np.abs(llc), 1.0)))


def describe(one: xr.Dataset) -> str:
    """One setting in a few words."""
    words = f"n_beta {float(one['n_beta']):.4g}, localization {float(one['localization']):.4g}, "
    words += f"step size {float(one['step_size']):.3g}"
    sampler = str(one["sampler"].item()) if "sampler" in one.coords else "sgld"
    return words if sampler == "sgld" else f"{sampler}, {words}"


def _reasons(table: xr.Dataset, judged: xr.Dataset, best: int, num_fitting: int) -> tuple[str, ...]:
    trained = judged["trained"].values
    one, here = table.isel(setting=best), judged.isel(setting=best)
    count = int(trained.sum())
    reasons = [f"{describe(one)}: one of {num_fitting} of {table.sizes['setting']} settings that pass every check."]
    if np.isfinite(here["lift"].values).any():
        most = np.nanmax(here["lift"].values)
        reasons.append(f"local: the loss rises by at most {most:.0%} of the way to chance at {count} checkpoints.")
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


def _localization_reason(flat: int, count: int) -> str:
    if flat == count:
        return "localization: a neighboring value gives the same LLC at every trained checkpoint."
    return (
        f"localization: the LLC is the same at a neighboring value at only {flat} of {count} checkpoints, so compare "
        "LLCs at this localization alone."
    )


def _nearest_miss(table: xr.Dataset, judged: xr.Dataset) -> tuple[str, ...]:
    """Why no setting qualifies, and what the best of them lacks."""
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
    reasons += _advice(table, passed)
    return tuple(reasons)


def _advice(table: xr.Dataset, passed: np.ndarray) -> list[str]:
    """What to change in the grid, from what fails at every setting."""
    never = dict(zip(CRITERIA, np.asarray(~np.asarray(passed.all(1)).any(1)), strict=True))
    advice = {
        "alive": "add smaller step sizes.",
        "local": "add larger values of localization or n_beta.",
        "mixed": "take more burn-in and more draws, or larger step sizes.",
        "unbiased": "add smaller step sizes.",
    }
    found = [f"no setting passes '{name}' everywhere: {words}" for name, words in advice.items() if never[name]]
    if len(np.unique(table["step_size"].values)) < 2:
        found.append("the grid has one step size only, so no plateau can be seen: give at least two.")
    elif not found and never["step_plateau"]:
        found.append("no two neighboring step sizes agree: put step sizes closer together and take longer chains.")
    return found


def _config_of(configs: tuple[SweepConfig, ...], table: xr.Dataset, setting: int) -> SweepConfig:
    one = table.isel(setting=setting)
    base = next(config for config in configs if config.sampler == str(one["sampler"].item()))
    values = {name: (float(one[name]),) for name in ("n_beta", "localization", "step_size")}
    return dataclasses.replace(base, **values)


def _bracket(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig,
    anchored: xr.Dataset,
    folder: Path | None,
    known: dict[str, Any],
) -> Bracket | None:
    """The recommended setting once more, with chains from the prior."""
    if config.localization[0] == 0:
        return None
    other = dataclasses.replace(config, init="anchor" if config.init == "prior" else "prior")
    facts = sweep(loss_fn, bank, data, other, out=_below(folder, _bracket_name(other)), **known)
    opposite = estimates(facts).isel(setting=0)
    prior, anchor = (opposite, anchored) if other.init == "prior" else (anchored, opposite)
    difference, error = llc_difference(prior, anchor)
    return Bracket(
        step=anchored["checkpoint"].values,
        from_prior=prior["llc"].values,
        from_anchor=anchor["llc"].values,
        difference=difference,
        stderr=error,
        closed=same_llc(prior, anchor),
    )


def _bracket_name(config: SweepConfig) -> str:
    """A store for each setting: a new recommendation must not meet the store of an old one."""
    values = (config.n_beta[0], config.localization[0], config.step_size[0])
    return "_".join(["bracket", config.sampler, *(f"{value:.6g}" for value in values)])


def _bracket_reason(bracket: Bracket | None) -> str:
    if bracket is None:
        return "bracket: localization 0 has no prior to start from, so convergence was not checked from both sides."
    if bracket.closed.all():
        largest = np.max(np.abs(bracket.difference))
        return f"bracket: chains from the prior and from the checkpoint agree (largest difference {largest:.2g})."
    where = ", ".join(f"{step:,}" for step in bracket.step[~bracket.closed])
    return f"bracket: chains from the prior and from the checkpoint still differ at step {where}; take longer chains."
