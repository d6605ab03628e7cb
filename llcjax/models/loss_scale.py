"""Static loss scaling: keeps gradients within the range of float16 on their way back (arXiv 1710.03740, section 3.2).

Gradients of a mean over many outputs are as small as one over their number, and float16 has nothing below 6e-8. Those
of parameters, sums over all tokens, are float32 (`llcjax.models.half_linear` and the kernels): float16 ends at 65,504.
"""

from __future__ import annotations

import functools
import math

import jax
from jaxtyping import Array

from llcjax.types import ApplyFn, Params


def with_loss_scale(apply: ApplyFn) -> ApplyFn:
    """The same function with the same gradients, which on the way back are multiplied by the number of tokens.

    The factor is the power of two next to that number, so that it rounds nothing, and it is divided out of the
    gradients of parameters and inputs.

    Args:
        apply: `apply(params, inputs)` with inputs of shape `(batch, token, ...)` and outputs in float32.
    """

    @functools.wraps(apply)
    def scaled(params: Params, inputs: Array) -> Array:
        scale = 2.0 ** round(math.log2(inputs.shape[0] * inputs.shape[1]))
        inside = jax.tree.map(functools.partial(_times_backward, 1 / scale), params)
        return _times_backward(scale, apply(inside, _times_backward(1 / scale, inputs)))

    return scaled


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _times_backward(factor: float, value: Array) -> Array:
    """The value itself, whose gradient is multiplied."""
    return value


_times_backward.defvjp(lambda factor, value: (value, None), lambda factor, _, gradient: (gradient * factor,))
