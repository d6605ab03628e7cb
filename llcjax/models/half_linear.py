"""A linear map whose activations may have 16 bits, and whose parameters have float32 gradients.

The gradient of a matrix is a sum over all tokens. Where gradients are scaled so that float16 holds those of one token
(`llcjax.models.loss_scale`), the sum may lie beyond its range: an entry of 4 in the gradient of a mean over 16,384
tokens does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Linear):
    """`flax.nnx.Linear`; with `dtype` float16 its parameters have float32 gradients."""

    def __call__(self, inputs: Float[Array, "... D"], out_sharding: Any = None) -> Float[Array, "... E"]:
        """The map of the last axis."""
        if self.dtype is None or jnp.dtype(self.dtype) != jnp.float16:
            return super().__call__(inputs, out_sharding)
        return _half_linear(inputs.astype(jnp.float16), self.kernel[...], bias_of(self))


def bias_of(linear: nnx.Linear) -> Float[Array, " E"]:
    """The bias of a linear map, zeros where it has none."""
    return jnp.zeros(linear.out_features) if linear.bias is None else linear.bias[...]


@jax.custom_vjp
def _half_linear(x: Float[Array, "... D"], weight_DE: Float[Array, "D E"], bias_E: Float[Array, " E"]) -> Array:
    return x @ weight_DE.astype(x.dtype) + bias_E.astype(x.dtype)


def _forward(x: Array, weight_DE: Array, bias_E: Array) -> tuple[Array, tuple[Array, Array]]:
    return _half_linear(x, weight_DE, bias_E), (x, weight_DE)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, weight_DE = kept
    weight = jnp.einsum("...d,...e->de", x, dy, preferred_element_type=jnp.float32)
    bias = jnp.sum(dy.reshape(-1, dy.shape[-1]), 0, dtype=jnp.float32)
    return dy @ weight_DE.astype(dy.dtype).T, weight, bias


_half_linear.defvjp(_forward, _backward)
