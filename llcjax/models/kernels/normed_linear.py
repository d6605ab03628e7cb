"""Norm and linear map as one kernel a direction: n(x) W + b, with n(x) = (x - mean) / standard deviation.

Plain jax writes the normalised rows and reads them in three products. Here they are computed where they are needed, and
the residual stream passes through, so that backward adds its gradient in the same pass.

Shape letters: N rows (batch x token), R rows of a tile, D model width, E width of the result, P programs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from llcjax.models.kernels import Products, tiles


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """What is compiled into the kernels."""

    products: Products
    layer_norm: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normed_linear(
    spec: LinearSpec, x_ND: Float[Array, "N D"], weight_DE: Float[Array, "D E"], bias_E: Float[Array, " E"]
) -> tuple[Float[Array, "N E"], Float[Array, "N D"]]:
    """The map of the normalised rows, and the rows themselves for what adds to them.

    Args:
        spec: options.
        x_ND: rows; their dtype is that of the results.
        weight_DE: matrix, the norm's scale folded into it; E is a multiple of D.
        bias_E: the norm's shift, mapped.
    """
    return _forward(spec, x_ND, weight_DE, bias_E)[0]


def _forward(spec: LinearSpec, x_ND: Array, weight_DE: Array, bias_E: Array) -> tuple[Any, Any]:
    per_program = tiles.program_rows(len(x_ND), backward=False)
    x, (width, wide) = tiles.padded(x_ND, per_program), weight_DE.shape
    mapped = pl.pallas_call(
        functools.partial(_forward_kernel, spec),
        grid=(len(x) // per_program,),
        in_specs=[tiles.rows_of_program(per_program, width), *tiles.same_for_all(weight_DE, bias_E)],
        out_specs=tiles.rows_of_program(per_program, wide),
        out_shape=jax.ShapeDtypeStruct((len(x), wide), x.dtype),
        interpret=spec.products.interpret,
        compiler_params=tiles.FOUR_WARPS,
    )(x, weight_DE, bias_E)
    return (mapped[: len(x_ND)], x_ND), (x_ND, weight_DE, bias_E)


def _backward(spec: LinearSpec, kept: Any, gradients: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    x_ND, weight_DE, bias_E = kept
    per_program = tiles.program_rows(len(x_ND), backward=True)
    x, d_mapped, d_through = (tiles.padded(array, per_program) for array in (x_ND, *gradients))
    (width, wide), programs = weight_DE.shape, len(x) // per_program
    narrow, broad = (tiles.rows_of_program(per_program, size) for size in (width, wide))
    shapes = [(size, wide) for size in (width, 16)]
    dx, weight, bias = pl.pallas_call(
        functools.partial(_backward_kernel, spec, tiles.backward_rows(x.dtype, 32)),
        grid=(programs,),
        in_specs=[narrow, broad, narrow, *tiles.same_for_all(weight_DE)],
        out_specs=[narrow, *(tiles.matrix_of_program(*shape) for shape in shapes)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(jax.ShapeDtypeStruct((programs, *shape), jnp.float32) for shape in shapes),
        ],
        interpret=spec.products.interpret,
        compiler_params=tiles.FOUR_WARPS,
    )(x, d_mapped, d_through, weight_DE)
    weight, bias = jnp.sum(weight, 0), jnp.sum(bias, 0)[0]
    return dx[: len(x_ND)], weight.astype(weight_DE.dtype), bias.astype(bias_E.dtype)


normed_linear.defvjp(_forward, _backward)


def _columns(width: int, wide: int) -> list[Any]:
    """The result in parts as wide as the rows: sizes in a kernel are powers of two."""
    return [pl.ds(start, width) for start in range(0, wide, width)]


def _normed(spec: LinearSpec, x: Array) -> tuple[Array, Array | None]:
    return tiles.normalise(x.astype(jnp.float32)) if spec.layer_norm else (x.astype(jnp.float32), None)


def _forward_kernel(spec: LinearSpec, x_ref: Any, weight_ref: Any, bias_ref: Any, mapped_ref: Any) -> None:
    parts = _columns(*weight_ref.shape)
    weights = [(weight_ref[:, part], bias_ref[part][None, :]) for part in parts]

    def one(tile: Array, carry: None) -> None:
        at = pl.ds(tile * tiles.FORWARD_ROWS, tiles.FORWARD_ROWS)
        normed, _ = _normed(spec, x_ref[at, :])
        for part, (weight, bias) in zip(parts, weights, strict=True):
            mapped_ref[at, part] = (tiles.dot(spec.products, normed, weight) + bias).astype(mapped_ref.dtype)
        return carry

    lax.fori_loop(0, x_ref.shape[0] // tiles.FORWARD_ROWS, one, None)


def _backward_kernel(
    spec: LinearSpec, rows: int, x_ref: Any, d_mapped_ref: Any, d_through_ref: Any, weight_ref: Any,
    dx_ref: Any, d_weight_ref: Any, d_bias_ref: Any,
) -> None:  # fmt: skip
    product = functools.partial(tiles.dot, spec.products)
    width, wide = weight_ref.shape
    parts = _columns(width, wide)
    weights = [weight_ref[:, part] for part in parts]
    ones = tiles.row_of_ones(rows)

    def one(tile: Array, sums: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
        at = pl.ds(tile * rows, rows)
        normed, inverse = _normed(spec, x_ref[at, :])
        d_normed, found = jnp.zeros((rows, width), jnp.float32), []
        for part, weight, (d_weight, d_bias) in zip(parts, weights, sums, strict=True):
            d_mapped = d_mapped_ref[at, part]
            d_normed += product(d_mapped, weight, (1, 1))
            found.append((d_weight + product(normed, d_mapped, (0, 0)), d_bias + product(ones, d_mapped)))
        dx = tiles.normalise_backward(d_normed, normed, inverse) if inverse is not None else d_normed
        dx_ref[at, :] = (dx + d_through_ref[at, :].astype(jnp.float32)).astype(dx_ref.dtype)
        return found

    start = [(jnp.zeros((width, width), jnp.float32), jnp.zeros((16, width), jnp.float32)) for _ in parts]
    totals = lax.fori_loop(0, x_ref.shape[0] // rows, one, start)
    for part, (d_weight, d_bias) in zip(parts, totals, strict=True):
        d_weight_ref[:, part] = d_weight
        d_bias_ref[:, part] = d_bias
