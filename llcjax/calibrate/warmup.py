"""Step-size warm-up: the step at which MALA would accept a wanted share of SGLD's moves.

Short chains run at a wide grid of step sizes, as one sweep. For each n_beta and localization the acceptance at the
hardest checkpoint is made monotone in the step and interpolated. Near 1 the refused share of moves grows as a power of
the step (as step^1.5 on a Gaussian), so that log(-log(acceptance)) is a straight line over log(step).

SGLD's moves are judged on the batch that made them: the acceptance is that of the batch's own posterior. It sees the
discretisation, which the step size decides, and not the noise of the batches.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import xarray as xr
from jaxtyping import Float

from llcjax.calibrate.looks import Subject
from llcjax.config import Setting, SweepConfig
from llcjax.estimators import estimates
from llcjax.types import GROUP

FACTOR, REACH = 3.0, 4
"""The grid of step sizes: this factor between neighbors, so many of them on each side of the middle."""
NEIGHBORS = (1 / 3, 1.0, 3.0)
"""Step sizes of the calibration in units of the one that was found: its neighbors show whether it is on a plateau."""
LEAST_BURNIN, NUM_DRAWS, NUM_CHAINS = 100, 40, 2
"""Size of the short chains: steps before the first draw, draws, chains."""
SURE = 1e-6
"""Acceptances nearer than this to 0 or 1 are 0 or 1."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Step sizes at which MALA would accept a wanted share of moves."""

    target: float
    """The wanted acceptance."""
    acceptance: xr.DataArray
    """`(checkpoint, setting)` mean acceptance of the short chains; 0 where they diverged."""
    found: tuple[Setting, ...]
    """One setting for each n_beta and localization, with the step size that was found."""
    bracketed: tuple[bool, ...]
    """Whether the grid holds steps with more and with less acceptance than wanted; else the nearest end was taken."""

    def sentence(self, n_beta: float, localization: float) -> str:
        """What was found for one n_beta and localization."""
        pairs = zip(self.found, self.bracketed, strict=True)
        one, inside = next(pair for pair in pairs if (pair[0].n_beta, pair[0].localization) == (n_beta, localization))
        if not inside:
            return (
                f"warm-up: no step size from {self.acceptance['step_size'].values.min():.2g} to "
                f"{self.acceptance['step_size'].values.max():.2g} has MALA acceptance {self.target:.0%}; "
                f"{one.step_size:.2g} is nearest, so give other step sizes to start from."
            )
        return (
            f"warm-up: at step size {one.step_size:.3g} MALA would accept {self.target:.0%} of the moves at the "
            "hardest checkpoint; a third and three times that lie beside it in the grid."
        )


def warm_up(subject: Subject, config: SweepConfig, target: float) -> WarmUp:
    """Finds the step size of each n_beta and localization of an SGLD config.

    Args:
        subject: what is calibrated; the hardest of its checkpoints decides.
        config: the grid; its step sizes only say where to start from (their geometric mean).
        target: the wanted acceptance, between 0 and 1.
    """
    middle = float(np.exp(np.mean(np.log(config.step_size))))
    steps = middle * FACTOR ** np.arange(-REACH, REACH + 1)
    short = dataclasses.replace(
        config,
        step_size=tuple(steps.tolist()),
        step_size_decay=0.0,
        num_chains=NUM_CHAINS,
        num_draws=NUM_DRAWS,
        num_burnin_steps=max(config.num_burnin_steps, LEAST_BURNIN),
        num_steps_between_draws=1,
        baseline="paired",
        eval_every=0,
        num_control_draws=0,
        per_position=False,
        acceptance_every=2,
    )
    table = estimates(subject.sweep(short, "warmup_sgld"))
    acceptance = table["acceptance"].fillna(0.0).transpose(*GROUP)
    hardest = acceptance.min("checkpoint").values.reshape(-1, len(steps))
    pairs = itertools.product(config.n_beta, config.localization)
    found = [(n, g, *step_at(steps, least, target)) for (n, g), least in zip(pairs, hardest, strict=True)]
    return WarmUp(
        target=target,
        acceptance=acceptance,
        found=tuple(Setting(n_beta=n, localization=g, step_size=step) for n, g, step, _ in found),
        bracketed=tuple(inside for *_, inside in found),
    )


def step_at(
    steps: Float[np.ndarray, " step"], acceptance: Float[np.ndarray, " step"], target: float
) -> tuple[float, bool]:
    """The step size at which acceptance falls to a target, and whether the steps lie on both sides of it.

    Args:
        steps: increasing step sizes.
        acceptance: at each of them; noise that makes it rise again is flattened.
        target: the wanted acceptance.

    Example:
        >>> step, inside = step_at(np.array([1e-4, 1e-3, 1e-2]), np.exp([-0.01, -0.1, -1.0]), np.exp(-0.3))
        >>> round(step, 5), inside
        (0.003, True)
    """
    falling = np.minimum.accumulate(np.clip(acceptance, SURE, 1 - SURE))
    level, wanted = np.log(-np.log(falling)), np.log(-np.log(target))
    # Of equal acceptances the largest step counts: the chain gets no worse by it.
    last = np.append(np.flatnonzero(np.diff(level) > 0), len(level) - 1)
    step = float(np.exp(np.interp(wanted, level[last], np.log(steps[last]))))
    return step, bool(level[0] <= wanted <= level[-1])


def around(config: SweepConfig, found: WarmUp) -> list[SweepConfig]:
    """The config once for each n_beta and localization, with the step size that was found and its neighbors."""
    return [
        dataclasses.replace(
            config,
            n_beta=one.n_beta,
            localization=one.localization,
            step_size=tuple(one.step_size * share for share in NEIGHBORS),
        )
        for one in found.found
    ]
