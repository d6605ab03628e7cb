"""The calibration itself: sweep the grid, judge it, recommend one setting, check that one from both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool

from llcjax import checks, show
from llcjax.calibrate.bracket import Bracket, bracket_reason, two_sided
from llcjax.calibrate.criteria import CRITERIA, at_all, judge_settings
from llcjax.calibrate.grids import check_configs, config_of, grid_name, joined, with_measures
from llcjax.calibrate.looks import Subject, anchor_losses, spread_checkpoints
from llcjax.calibrate.recommend import recommend
from llcjax.calibrate.warmup import NEIGHBORS, WarmUp, around, warm_up
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.config_file import save_sweep_config
from llcjax.estimators import estimates
from llcjax.sweep import make_job
from llcjax.types import LossFn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a grid of settings says, and the setting to use."""

    facts: xr.Dataset
    """The sweep over the grid."""
    table: xr.Dataset
    """Its estimates."""
    judged: xr.Dataset
    """`lift`, `free_share`, `acceptance` and the criteria, each `(checkpoint, setting)`; `trained (checkpoint)`."""
    chosen: int | None
    """Index of the recommended setting."""
    recommended: SweepConfig | None
    """None where no setting is good enough; the reasons name the nearest miss."""
    reasons: tuple[str, ...]
    bracket: Bracket | None
    """The two-sided check of the recommended setting; None without one, or at localization 0."""
    warmup: WarmUp | None = None
    """Where the step sizes came from, where an acceptance was asked for."""

    def _repr_html_(self) -> str:
        """What a notebook shows: the recommended setting and the reasons."""
        chosen = {} if self.recommended is None else dataclasses.asdict(self.recommended.settings[0])
        reasons = {f"reason {number}": reason for number, reason in enumerate(self.reasons, 1)}
        return show.table({**(chosen or {"recommended": "no setting"}), **reasons})

    @property
    def stable(self) -> Bool[np.ndarray, " setting"]:
        """Whether each setting is sound, and on plateaus in step size and localization, at all trained checkpoints."""
        return at_all(self.judged, (*CRITERIA, "localization_plateau"))


def calibrate(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig | Sequence[SweepConfig],
    *,
    checkpoints: Sequence[int] | None = None,
    chance: float | None = None,
    target_acceptance: float | None = None,
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
        checkpoints: training steps to look at; None takes about five, spread over the loss curve from the first
            trained one (the hardest) to the last.
        chance: loss of a trivial predictor. Without it nothing tells whether chains stay local, except verdicts.
        target_acceptance: MALA acceptance, such as 0.9, that SGLD's step size is to have. A warm-up then finds the step
            size of each n_beta and localization, and it is judged with a third and three times that beside it; the
            step sizes of the SGLD config only say where to start from.
        out: folder for the stores and for `calibrated.json`; None keeps everything in memory.
        progress: shows progress bars.

    Returns:
        The judgement; its `recommended` is a config for `llcjax.sweep` over the whole bank.

    Raises:
        ValueError: bad input, or configs that differ in the number of chains or draws.
    """
    checks.instance("config", config, (SweepConfig, tuple, list), "a SweepConfig, or several")
    configs = (config,) if isinstance(config, SweepConfig) else tuple(config)
    if chance is not None:
        checks.number("chance", chance, "a finite loss", least=-checks.LARGEST)
    if out is not None:
        checks.path("out", out)
    if checkpoints is not None:
        checks.instance("checkpoints", checkpoints, (tuple, list, np.ndarray), "a list of training steps")
    check_configs(configs, target_acceptance)
    for one in configs:
        make_job(loss_fn, bank, data, one)  # refuses bad input before anything is computed
    subject = Subject(
        loss_fn=loss_fn,
        bank=_looked_at(loss_fn, bank, data, configs[0], checkpoints, chance),
        data=data,
        chance=chance,
        folder=None if out is None else Path(out),
        progress=progress,
    )
    warmup, grids = None, configs
    if target_acceptance is not None:
        first = next(one for one in configs if one.sampler == "sgld")
        warmup = warm_up(subject, first, target_acceptance)
        grids = (*around(first, warmup), *(one for one in configs if one is not first))
    parts = [subject.sweep(with_measures(one), grid_name(one, warmup is not None)) for one in grids]
    facts = joined(parts, grids)
    table = joined([estimates(part) for part in parts], grids)
    judged = judge_settings(facts, table)
    setting, reasons = recommend(table, judged, None if warmup is None else _in_the_middle(table))
    if warmup is not None:
        reasons = (*reasons[:1], *_warmup_reasons(warmup, table, setting), *reasons[1:])
    recommended, bracket = None, None
    if setting is not None:
        recommended = config_of(configs, table, setting)
        bracket = two_sided(subject, recommended, table.isel(setting=setting))
        reasons = (*reasons, bracket_reason(bracket))
        if subject.folder is not None:
            save_sweep_config(recommended, subject.folder / "calibrated.json")
    return Calibration(
        facts=facts,
        table=table,
        judged=judged,
        chosen=setting,
        recommended=recommended,
        reasons=reasons,
        bracket=bracket,
        warmup=warmup,
    )


def _looked_at(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig,
    steps: Sequence[int] | None,
    chance: float | None,
) -> CheckpointBank:
    """The checkpoints that were asked for, or a few of all."""
    if steps is not None:
        return bank.at_steps([checks.count("checkpoints", step) for step in steps])
    return spread_checkpoints(bank, anchor_losses(loss_fn, bank, data, config), chance)


def _in_the_middle(table: xr.Dataset) -> Bool[np.ndarray, " setting"]:
    """Settings with the step size that the warm-up found, and all of other samplers."""
    return np.asarray((table["sampler"].values != "sgld") | (table["step_level"].values == NEIGHBORS.index(1.0)))


def _warmup_reasons(warmup: WarmUp, table: xr.Dataset, setting: int | None) -> tuple[str, ...]:
    """The warm-up of the recommended setting, or of all where there is none."""
    if setting is None:
        return tuple(warmup.sentence(one.n_beta, one.localization) for one in warmup.found)
    one = table.isel(setting=setting)
    if str(one["sampler"].item()) != "sgld":
        return ()
    return (warmup.sentence(float(one["n_beta"]), float(one["localization"])),)
