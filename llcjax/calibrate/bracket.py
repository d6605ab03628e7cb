"""The two-sided check of a setting: chains from the checkpoint and from the prior must end at the same LLC."""

from __future__ import annotations

import dataclasses

import numpy as np
import xarray as xr

from llcjax.calibrate.looks import Subject
from llcjax.config import SweepConfig
from llcjax.estimators import estimates
from llcjax.sensitivity import llc_difference, same_llc


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
    """Standard error of the difference; the two sides have batches and noise of their own."""
    closed: np.ndarray
    """Whether the two sides are the same LLC."""


def two_sided(subject: Subject, config: SweepConfig, anchored: xr.Dataset) -> Bracket | None:
    """The recommended setting once more, with chains from the other side.

    Args:
        subject: what was calibrated.
        config: the recommended setting.
        anchored: its estimates, from chains that start as `config.init` says.

    The new chains have a seed of their own: under shared noise both sides would end on one path and agree by more than
    either knows. None at localization 0, which has no prior to start from.
    """
    if config.localization[0] == 0:
        return None
    start = "anchor" if config.init == "prior" else "prior"
    other = dataclasses.replace(config, init=start, seed=config.seed + 1)
    opposite = estimates(subject.sweep(other, _name(other))).isel(setting=0)
    prior, anchor = (opposite, anchored) if other.init == "prior" else (anchored, opposite)
    difference, error = llc_difference(prior, anchor, paired=False)
    return Bracket(
        step=anchored["checkpoint"].values,
        from_prior=prior["llc"].values,
        from_anchor=anchor["llc"].values,
        difference=difference,
        stderr=error,
        closed=same_llc(prior, anchor, paired=False),
    )


def _name(config: SweepConfig) -> str:
    """A store for each setting: a new recommendation must not meet the store of an old one."""
    values = (config.n_beta[0], config.localization[0], config.step_size[0])
    return "_".join(["bracket", config.sampler, *(f"{value:.6g}" for value in values)])


def bracket_reason(bracket: Bracket | None) -> str:
    """What the check says."""
    if bracket is None:
        return "bracket: localization 0 has no prior to start from, so convergence was not checked from both sides."
    if bracket.closed.all():
        largest = np.max(np.abs(bracket.difference))
        return f"bracket: chains from the prior and from the checkpoint agree (largest difference {largest:.2g})."
    where = ", ".join(f"{step:,}" for step in bracket.step[~bracket.closed])
    return f"bracket: chains from the prior and from the checkpoint still differ at step {where}; take longer chains."
