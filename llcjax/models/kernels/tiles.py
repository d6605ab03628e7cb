"""What kernels over tiles of rows share. Sizes of tiles and numbers of warps were chosen on one NVIDIA H200."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from llcjax.models.kernels import NORM_EPSILON, Products

FORWARD_ROWS = 64
"""Of a tile."""
_FORWARD_PROGRAM = 1024  # rows, for which a program loads the weights once
_BACKWARD_PROGRAM = 4096  # rows, of which a program leaves gradients of all weights, added up outside
FOUR_WARPS = triton.CompilerParams(num_warps=4, num_stages=1)
_BFLOAT16 = lax.DotAlgorithmPreset.BF16_BF16_F32


def backward_rows(dtype: Any, narrow: int) -> int:
    """Of a tile backward: `narrow` in float32, where operands and sums of gradients would not fit the registers."""
    return narrow if jnp.dtype(dtype).itemsize == 4 else 64


def program_rows(count: int, backward: bool) -> int:
    """Of a program, fewer where there are few rows."""
    return min(_BACKWARD_PROGRAM if backward else _FORWARD_PROGRAM, max(FORWARD_ROWS, 1 << (count - 1).bit_length()))


def padded(array: Float[Array, "N D"], multiple: int) -> Float[Array, "M D"]:
    """Rows of zeros after those of an array, up to a multiple; their gradients are zero or not used."""
    missing = -len(array) % multiple
    return jnp.pad(array, ((0, missing), (0, 0))) if missing else array


def rows_of_program(count: int, width: int) -> pl.BlockSpec:
    """Each program has rows of its own."""
    return pl.BlockSpec((count, width), lambda program: (program, 0))


def same_for_all(*arrays: Array) -> list[pl.BlockSpec]:
    """Every program sees all of these."""
    return [pl.BlockSpec(array.shape, lambda program, axes=array.ndim: (0,) * axes) for array in arrays]


def matrix_of_program(rows: int, width: int) -> pl.BlockSpec:
    """Each program leaves a matrix of its own, along a leading axis."""
    return pl.BlockSpec((None, rows, width), lambda program: (program, 0, 0))


def row_of_ones(rows: int) -> Float[Array, "16 R"]:
    """Times a tile it is the sum over its rows, as a product, which needs no barrier; 16 is its least height."""
    return jnp.ones((16, rows), jnp.float32)


def dot(products: Products, a: Array, b: Array, sides: tuple[int, int] = (1, 0)) -> Array:
    """Product over one axis of each, added up in float32."""
    if {a.dtype, b.dtype} != {jnp.dtype(jnp.bfloat16)} or products.algorithm not in (None, _BFLOAT16):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    axes = (((sides[0],), (sides[1],)), ((), ()))
    return lax.dot_general(a, b, axes, precision=products.algorithm, preferred_element_type=jnp.float32)


def normalise(x: Float[Array, "R D"]) -> tuple[Float[Array, "R D"], Float[Array, "R 1"]]:
    """Rows with mean 0 and variance 1, and 1 / their standard deviations."""
    centred = x - jnp.mean(x, 1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred * centred, 1, keepdims=True) + NORM_EPSILON)
    return centred * inverse, inverse


def normalise_backward(
    gradient: Float[Array, "R D"], normed: Float[Array, "R D"], inverse: Float[Array, "R 1"]
) -> Float[Array, "R D"]:
    """Gradient with respect to the rows, from that with respect to the normalised ones."""
    along = jnp.mean(gradient * normed, 1, keepdims=True)
    return inverse * (gradient - jnp.mean(gradient, 1, keepdims=True) - normed * along)
