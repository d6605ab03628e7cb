"""A bank in relative coordinates: each tensor in units of its own root mean square.

A localisation of fixed strength holds large weights tighter, in proportion, than small ones, so that growing weights
alone change an LLC. In u = w / s, with s the root mean square of the tensor at the checkpoint, it holds all alike.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from llcjax.checkpoints import CheckpointBank
from llcjax.types import Batch, LossFn, LossOutput, Params

FLOOR = 0.01
"""Added in square to the scale: biases that start at 0 have no size of their own."""


class Relative(NamedTuple):
    """What a sweep needs in relative coordinates."""

    loss_fn: LossFn
    bank: CheckpointBank
    mask: Params
    """Samples the relative weights and leaves the scales alone."""


def relative(loss_fn: LossFn, bank: CheckpointBank) -> Relative:
    """The same models in weights over the root mean square of their tensor.

    `localization` and `step_size` of a sweep are then without units: localization g holds each weight within
    1/sqrt(g) of the root mean square of its tensor.

    Args:
        loss_fn: of the weights themselves.
        bank: checkpoints.
    """

    def scale(leaf: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean(np.square(leaf), axis=tuple(range(1, leaf.ndim))) + FLOOR**2)

    scales = jax.tree.map(scale, bank.params)
    divided = jax.tree.map(lambda leaf, s: leaf / s.reshape(-1, *[1] * (leaf.ndim - 1)), bank.params, scales)
    mask = {"relative": jax.tree.map(lambda _: True, divided), "scale": jax.tree.map(lambda _: False, scales)}

    def loss(params: Params, batch: Batch) -> LossOutput:
        return loss_fn(jax.tree.map(lambda u, s: u * s, params["relative"], params["scale"]), batch)

    params = {"relative": divided, "scale": scales}
    return Relative(loss, CheckpointBank(params=params, steps=bank.steps, config=bank.config), mask)
