"""Names of shapes and protocols.

Dimensions, in this order everywhere: `checkpoint setting chain draw batch position feature`.
Losses are in nats per token or squared error per prediction, LLCs have no unit, steps are optimiser updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Float, Key

GROUP = ("checkpoint", "setting")
"""Dimensions of what is estimated: a group is a checkpoint at a setting."""

CHAIN = (*GROUP, "chain")
"""Dimensions of what each chain has."""

DRAW = (*CHAIN, "draw")
"""Dimensions of what each draw has."""

Curve = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Steps, values and their standard errors (or None), each `(checkpoint,)`."""

Params = Any
"""A pytree of float32 arrays."""

Batch = Any
"""A pytree of arrays with a leading `batch` axis."""

PRNGKey = Key[Array, ""]
"""A typed threefry2x32 key, from `jax.random.key`."""

LossOutput = Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "..."]]


class LossFn(Protocol):
    """A pure loss: `(params, batch) -> losses` or `(losses, weights)`, nats or squared error.

    `losses` has shape `(batch,)` or `(batch, position)`; a scalar mean over the batch is accepted too.
    The loss of a batch is `sum(weights * losses) / sum(weights)`. Losses of an example must not depend on the others of
    its batch (a loss that does, as with batch norm, returns a scalar mean).
    """

    def __call__(self, params: Params, batch: Batch, /) -> LossOutput:
        """Evaluates the loss of each example (and position)."""
        ...


class ApplyFn(Protocol):
    """A pure forward pass `(params, inputs) -> outputs`."""

    def __call__(self, params: Params, inputs: Array, /) -> Array:
        """Evaluates the model."""
        ...


InitFn = Callable[[PRNGKey], Params]
Observe = Callable[[Params], Any]
"""Any function of the parameters to record at each draw; returns an array or a dict of arrays."""
