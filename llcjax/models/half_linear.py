"""A linear map whose activations may have 16 bits, and whose parameters have float32 gradients.

The gradient of a matrix is a sum over all tokens. Where gradients are scaled so that float16 holds those of one token
(`llcjax.models.loss_scale`), the sum may lie beyond its range: an entry of 4 in the gradient of a mean over 16,384
tokens does.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_GROUPS = 8
"""Of rows, the sums over which are products of their own; the fastest of 4, 8 and 16 on one NVIDIA H200."""


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
def mapped(x_ND: Float[Array, "N D"], weight_DE: Float[Array, "D E"]) -> Float[Array, "N E"]:
    """The map x W in the dtype of x; the gradient of a float32 matrix is added up in float32, over groups of rows.

    On a GPU the product that is that gradient has few tiles and a long sum: one by cuBLAS for each group fills the
    device, one for all of them half of it.

    Args:
        x_ND: rows, of any dtype.
        weight_DE: matrix in float32.
    """
    return x_ND @ weight_DE.astype(x_ND.dtype)


def _mapped_forward(x_ND: Array, weight_DE: Array) -> tuple[Array, tuple[Array, Array]]:
    return x_ND @ weight_DE.astype(x_ND.dtype), (x_ND, weight_DE)


def _mapped_backward(kept: tuple[Array, Array], dy_NE: Array) -> tuple[Array, Array]:
    x_ND, weight_DE = kept
    groups = math.gcd(len(x_ND), _GROUPS)
    x_GND, dy_GNE = (array.reshape(groups, -1, array.shape[1]) for array in (x_ND, dy_NE))
    parts_GDE = jnp.einsum("gnd,gne->gde", x_GND, dy_GNE, preferred_element_type=jnp.float32)
    # Or XLA would make one product of it again.
    d_weight_DE = jnp.sum(jax.lax.optimization_barrier(parts_GDE), 0)
    return dy_NE @ weight_DE.astype(dy_NE.dtype).T, d_weight_DE


mapped.defvjp(_mapped_forward, _mapped_backward)


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
