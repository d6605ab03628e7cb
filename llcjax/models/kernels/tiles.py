"""What kernels over tiles of rows share. Sizes of tiles and numbers of warps were chosen on one NVIDIA H200."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Float32

from llcjax.models.kernels import NORM_EPSILON, Products

_OPERANDS = {lax.DotAlgorithmPreset.BF16_BF16_F32: jnp.bfloat16, lax.DotAlgorithmPreset.F16_F16_F32: jnp.float16}


LOG2_E = math.log2(math.e)
"""Logits times this are exponents of 2."""
_LEAST_PROGRAMS = 8
"""Of a chain; each leaves gradients of the weights that are written and read once more."""


class Launch(NamedTuple):
    """How a kernel is cut up."""

    rows: int
    """Of a tile."""
    warps: int
    """Of a program."""
    tiles: int
    """Of a program, which loads the weights once and, backward, leaves gradients of them to be added up outside."""
    stages: int
    """2 loads the next tile while the program works on one, 3 the next two; each takes shared memory."""

    def program_rows(self, count: int) -> int:
        """Of a program, fewer where there are few rows, so that one chain alone has programs for several processors."""
        return min(self.rows * self.tiles, max(self.rows, (1 << (count - 1).bit_length()) // _LEAST_PROGRAMS))

    @property
    def compiler_params(self) -> triton.CompilerParams:
        """What the compiler is to know."""
        return triton.CompilerParams(num_warps=self.warps, num_stages=self.stages)


def is_half(dtype: Any) -> bool:
    """Whether elements have 16 bits."""
    return jnp.dtype(dtype).itemsize == 2


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


def for_each(rows: int, ref: Any, one: Callable[[Any], None]) -> None:
    """Calls `one` with the rows of each tile of a program in turn."""
    lax.fori_loop(0, ref.shape[0] // rows, lambda tile, carry: one(pl.ds(tile * rows, rows)), None)


def row_of_ones(rows: int) -> Float[Array, "16 R"]:
    """Times a tile it is the sum over its rows, as a product, which needs no barrier; 16 is its least height."""
    return jnp.ones((16, rows), jnp.float32)


def dot(products: Products, a: Array, b: Array, sides: tuple[int, int] = (1, 0)) -> Array:
    """Product over one axis of each, added up in float32."""
    axes = (((sides[0],), (sides[1],)), ((), ()))
    # As the compiler would round them, but before they go through shared memory.
    dtype = _OPERANDS.get(products.algorithm, jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    algorithm = None if products.interpret else products.algorithm
    return lax.dot_general(a, b, axes, precision=algorithm, preferred_element_type=jnp.float32)


def exp2(products: Products, x: Float32[Array, ...]) -> Float32[Array, ...]:
    """2 ** x; on an NVIDIA GPU one instruction, without those that would save what is below 1e-38."""
    if products.interpret:
        return jnp.exp2(x)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    (result,) = triton.elementwise_inline_asm(
        "ex2.approx.ftz.f32 $0, $1;", args=[x], constraints="=f,f", pack=1, result_shape_dtypes=[shape]
    )
    return result


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
