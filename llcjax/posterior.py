"""The local tempered posterior and the loss as the rest of the library sees it.

    U(w) = n_beta * L(w) + localization/2 * |w - w*|^2        (arXiv 2308.12108, eq. 14; 2402.02364, eq. 5)

`n_beta` is the number of examples times the inverse temperature; `localization` is gamma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.types import Batch, LossFn, Params
from llcjax.untrusted import reason


class Loss(NamedTuple):
    """Losses of one batch: sums over the batch, so that microbatches and padding add up exactly."""

    total: Float[Array, ""]
    """Weighted sum of the losses (of the mean times the batch size for scalar losses)."""
    weight: Float[Array, ""]
    """Sum of the weights."""
    position_total: Float[Array, " position"] | None
    """The same per position, where the losses have positions."""
    position_weight: Float[Array, " position"] | None

    @property
    def mean(self) -> Float[Array, ""]:
        """L = sum(weights * losses) / sum(weights)."""
        return self.total / self.weight

    @property
    def position_mean(self) -> Float[Array, " position"] | None:
        """The mean loss of each position."""
        if self.position_total is None or self.position_weight is None:
            return None
        return self.position_total / self.position_weight


def evaluate(loss_fn: LossFn, params: Params, batch: Batch) -> Loss:
    """Evaluates a loss function of any accepted form on one batch, accumulating in float32."""
    losses, weights = _losses_and_weights(loss_fn, params, batch)
    if losses.ndim == 0:
        size = jnp.float32(batch_size_of(batch))
        return Loss(losses * size, size, None, None)
    weights = jnp.ones_like(losses) if weights is None else weights
    weighted = weights * losses
    if losses.ndim == 1:
        return Loss(jnp.sum(weighted), jnp.sum(weights), None, None)
    position_total, position_weight = jnp.sum(weighted, 0), jnp.sum(weights, 0)
    return Loss(jnp.sum(weighted), jnp.sum(weights), position_total, position_weight)


def _losses_and_weights(loss_fn: LossFn, params: Params, batch: Batch) -> tuple[Array, Array | None]:
    """What a loss of any accepted form returns, in float32."""
    output = loss_fn(params, batch)
    losses, weights = output if isinstance(output, tuple) else (output, None)
    as_float = lambda values: jnp.asarray(values).astype(jnp.float32)  # noqa: E731
    return as_float(losses), None if weights is None else as_float(weights)


class ExampleLosses(NamedTuple):
    """Losses of single examples, which the others of their batch do not change."""

    total: Float[Array, "... example"]
    """Weighted sum over the positions of an example; their mean where there are no weights."""
    weight: Float[Array, "... example"] | None
    """Sum of the weights; None where there are none, and examples count alike."""

    def mean(self, index: Any) -> Float[Array, ""]:
        """L of the examples with these indices; `(anchor, examples)` where there are anchors."""
        total = self.total[index]
        return jnp.mean(total) if self.weight is None else jnp.sum(total) / jnp.sum(self.weight[index])


def example_losses(loss_fn: LossFn, params: Params, batch: Batch) -> ExampleLosses:
    """Losses of the examples of a batch, of a loss that does not return one number for all."""
    losses, weights = _losses_and_weights(loss_fn, params, batch)
    positions = tuple(range(1, losses.ndim))
    if weights is None:
        return ExampleLosses(jnp.mean(losses, positions), None)
    return ExampleLosses(jnp.sum(weights * losses, positions), jnp.sum(weights, positions))


def batch_size_of(batch: Batch) -> int:
    """Size of the leading axis of a batch; 1 for a batch without arrays (a loss of the parameters alone)."""
    leaves = jax.tree.leaves(batch)
    return int(np.shape(leaves[0])[0]) if leaves else 1


def check_loss_shape(loss_fn: LossFn, params: Params, batch: Batch) -> int:
    """Checks what a loss returns without computing it.

    Args:
        loss_fn: the loss.
        params: parameters or their shapes.
        batch: a batch or its shapes.

    Returns:
        Number of its axes: 0 for one number, 1 for losses of examples, 2 for losses of their positions.

    Raises:
        ValueError: the loss does not return a scalar, `(batch,)` or `(batch, position)` losses, or
            `(losses, weights)` of equal shape.
    """
    try:
        output = jax.eval_shape(loss_fn, params, batch)
    except Exception as error:  # of whatever type the loss raises
        raise ValueError(
            f"loss_fn fails on these parameters and a batch of {batch_size_of(batch)} ({reason(error)}); "
            "try loss_fn(params, batch) by itself."
        ) from error
    parts = output if isinstance(output, tuple) else (output,)
    if len(parts) > 2 or not all(hasattr(part, "shape") for part in parts):
        raise ValueError(
            f"loss_fn returned {jax.tree.structure(output)}; return losses, or (losses, weights) of equal shape."
        )
    real = (jnp.floating, jnp.integer)
    for part, kinds in zip(parts, (real, (*real, jnp.bool_)), strict=False):  # weights may be a mask
        if not any(jnp.issubdtype(part.dtype, kind) for kind in kinds):
            raise ValueError(f"loss_fn returned numbers of type {part.dtype}; return real losses and weights.")
    shapes = [part.shape for part in parts]
    size = batch_size_of(batch)
    per_example = 1 <= len(shapes[0]) <= 2 and shapes[0][0] == size
    if len(set(shapes)) > 1 or not (per_example or (shapes == [()])):
        raise ValueError(
            f"loss_fn returned shape {' and '.join(map(str, shapes))} for a batch of {size}; return a scalar mean, "
            f"per-example losses ({size},), per-position losses ({size}, position), "
            "or (losses, weights) of equal shape."
        )
    return len(shapes[0])


def check_mean(loss_fn: LossFn, params: Params, batch: Batch) -> None:
    """Refuses a scalar loss that adds its batch up: its LLC would be that of the mean times the size of the batch.

    Args:
        loss_fn: a loss that returns one number.
        params: parameters.
        batch: a few examples, of which the loss is computed once and with each of them twice.

    Raises:
        ValueError: the loss is doubled by twice the same examples.
    """
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), batch)
    try:
        one, two = (float(jax.jit(loss_fn)(params, part)) for part in (batch, twice))
    except (TypeError, ValueError):  # it takes batches of one size alone, so nothing can be told
        return
    if np.isclose(two, 2 * one, rtol=1e-3, atol=0) and not np.isclose(two, one, rtol=0.1, atol=0):
        raise ValueError(
            f"loss_fn returned {one:.4g} on {batch_size_of(batch)} examples and {two:.4g} on the same ones twice: it "
            "adds them up; return their mean, or one loss an example."
        )


class LocalPosterior(NamedTuple):
    """A tempered posterior localised at an anchor w*; its numbers may be traced.

    U(w) = n_beta * L(w) + localization/2 * |w - w*|^2 + weight_decay/2 * |w|^2 inside the box, infinite outside.
    """

    loss_fn: LossFn
    anchor: Params
    n_beta: Float[Array, ""] | float
    localization: Float[Array, ""] | float
    weight_decay: Float[Array, ""] | float = 0.0
    """Precision of a Gaussian prior around 0 (inverse squared parameters)."""
    box: Float[Array, ""] | float | None = None
    """Largest distance of each parameter from the anchor; None leaves it free."""
    mask: Params | None = None
    """Pytree of booleans, each broadcastable to its parameters: True is sampled, False stays at the anchor."""
    microbatch_size: int | None = None
    """Examples that are evaluated at once; losses and gradients of a batch are summed over its microbatches."""

    def loss(self, params: Params, batch: Batch) -> Loss:
        """Losses of one batch at `params`."""
        return self._summed(lambda part: evaluate(self.loss_fn, params, part), batch)

    def loss_and_grad(self, params: Params, batch: Batch) -> tuple[Loss, Params]:
        """Losses of one batch and the gradient of their mean (without n_beta and prior)."""

        def total(params: Params, part: Batch) -> tuple[Float[Array, ""], Loss]:
            loss = evaluate(self.loss_fn, params, part)
            return (loss.mean if self._whole(batch) else loss.total), loss

        gradient, loss = self._summed(lambda part: jax.grad(total, has_aux=True)(params, part), batch)
        if not self._whole(batch):  # the weights do not depend on the parameters
            gradient = jax.tree.map(lambda leaf: leaf / loss.weight, gradient)
        return loss, gradient

    def _whole(self, batch: Batch) -> bool:
        return self.microbatch_size is None or self.microbatch_size >= batch_size_of(batch)

    def _summed(self, one: Callable[[Batch], Any], batch: Batch) -> Any:
        """Sums what a function returns over the microbatches of a batch, one after another."""
        if self._whole(batch):
            return one(batch)
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, self.microbatch_size, *leaf.shape[1:]), batch)
        shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], parts))
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None), empty, parts)[0]

    def force(self, loss_gradient: Params, params: Params) -> Params:
        """The gradient of U from that of the loss."""

        def one(gradient: Array, value: Array, anchor: Array) -> Array:
            prior = self.localization * (value - anchor)
            # A weight decay of exactly 0 adds nothing to the program.
            decay = 0 if isinstance(self.weight_decay, float) and self.weight_decay == 0 else self.weight_decay * value
            return self.n_beta * gradient + prior + decay

        return jax.tree.map(one, loss_gradient, params, self.anchor)

    def potential(self, mean_loss: Float[Array, ""], params: Params) -> Float[Array, ""]:
        """U(w) from the mean loss at w."""
        gaps = jax.tree.map(jnp.subtract, params, self.anchor)
        value = (
            self.n_beta * mean_loss + self.localization / 2 * _square(gaps) + self.weight_decay / 2 * _square(params)
        )
        if self.box is None:
            return value
        inside = jnp.stack([jnp.all(jnp.abs(gap) <= self.box) for gap in jax.tree.leaves(gaps)]).all()
        return jnp.where(inside, value, jnp.inf)

    def confine(self, params: Params) -> Params:
        """Reflects parameters that left the box back into it."""
        box = self.box
        if box is None:
            return params

        def reflect(value: Array, anchor: Array) -> Array:
            # Distance along a path that turns around at +-box, as a triangle wave of period 4 box.
            phase = jnp.mod(value - anchor + box, 4 * box)
            reflected = anchor + jnp.where(phase <= 2 * box, phase, 4 * box - phase) - box
            # Inside the box nothing is rounded.
            return jnp.where(jnp.abs(value - anchor) <= box, value, reflected)

        return jax.tree.map(reflect, params, self.anchor)

    def sampled(self, tree: Params) -> Params:
        """Sets the entries that are not sampled to 0."""
        if self.mask is None:
            return tree
        return jax.tree.map(lambda leaf, keep: jnp.where(keep, leaf, 0), tree, self.mask)


def _square(tree: Params) -> Float[Array, ""]:
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), jnp.float32(0))
