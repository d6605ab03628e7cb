"""Which checkpoints a calibration looks at, and how it sweeps them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

from llcjax import keys
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.data import data_source, dataset_loss
from llcjax.program import sampled_losses
from llcjax.sweep import sweep
from llcjax.types import LossFn
from llcjax.verdicts import is_trained

LOOK_EXAMPLES, LOOK_BATCHES = 4096, 16
"""On how much data all checkpoints are looked at, to choose a few."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is calibrated: a loss at a few checkpoints."""

    loss_fn: LossFn
    bank: CheckpointBank
    """The checkpoints to look at."""
    data: Any
    chance: float | None
    folder: Path | None
    """Where the stores are; None keeps them in memory."""
    progress: bool

    def sweep(self, config: SweepConfig, name: str) -> xr.Dataset:
        """Sweeps the checkpoints; the store has a name in the folder."""
        out = None if self.folder is None else self.folder / name
        return sweep(self.loss_fn, self.bank, self.data, config, out=out, chance=self.chance, progress=self.progress)


def anchor_losses(
    loss_fn: LossFn, bank: CheckpointBank, data: Any, config: SweepConfig
) -> Float[np.ndarray, " checkpoint"]:
    """L(w*) of every checkpoint on the same few thousand examples (a training batch would be far noisier).

    Args:
        loss_fn: as for `llcjax.sweep`.
        bank: the checkpoints.
        data: as for `llcjax.sweep`.
        config: where its batch size and seed come from.
    """
    source = data_source(data)
    if source.draw is not None:
        root = keys.chain_key(keys.as_key(config.seed), "baseline", 0, 0)
        batch_keys = jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.arange(LOOK_BATCHES))
        measure = functools.partial(sampled_losses, loss_fn, source.draw)
        return np.array([float(measure(bank.checkpoint(i), batch_keys).mean.mean()) for i in range(len(bank))])
    some = jax.tree.map(lambda leaf: leaf[:LOOK_EXAMPLES], source.arrays)
    loss = jax.jit(lambda params, arrays: dataset_loss(loss_fn, params, arrays, config.batch_size).mean)
    return np.array([float(loss(bank.checkpoint(i), some)) for i in range(len(bank))])


def spread_checkpoints(
    bank: CheckpointBank, losses: Float[np.ndarray, " checkpoint"], chance: float | None = None, count: int = 5
) -> CheckpointBank:
    """A few checkpoints, evenly spread along the curve of the loss over log(step + 1).

    The first and the last trained one are among them: just below chance the chains have least room to rise, so that
    this is where a setting fails first.

    Args:
        bank: the checkpoints.
        losses: `(checkpoint,)` L(w*), as `anchor_losses` measures them; those that are not finite are left out.
        chance: loss of a trivial predictor; with it, only trained checkpoints are taken, as long as there are any.
        count: how many.
    """
    known = np.isfinite(losses)
    trained = known if chance is None else known & is_trained(losses, chance)
    usable = np.flatnonzero(trained if trained.any() else known)
    if usable.size <= count:
        return bank[usable] if usable.size else bank
    place = np.log1p(bank.steps[usable].astype(float))
    # The least loss so far: a rise is no way back.
    fallen = losses[usable[0]] - np.minimum.accumulate(losses[usable])
    path = place / place[-1] + fallen / max(fallen[-1], 1e-12)
    wanted = np.linspace(path[0], path[-1], count)
    return bank[np.unique([usable[np.argmin(np.abs(path - at))] for at in wanted])]
