"""What follows attention in a pre-norm block, as one kernel a direction: output map, norm, MLP and both residual sums.

    a = x + mixed W_o,  y = a + relu(n(a) W_1 + b_1) W_2 + b_2  (+ x),  n(a) = (a - mean) / standard deviation

Plain jax writes and reads each of these between its products. Here a program takes tiles of rows through all of them in
registers, so that forward reads x and mixed and writes y, and backward reads them with the gradient of y and computes
the rest again. Gradients of the weights are added up over the tiles of a program, and over programs outside.

The norm has no scale and no shift of its own: they are folded into W_1 and b_1 outside, whose gradients carry theirs.

Shape letters: N rows (batch x token), R rows of a tile, D model width, F MLP width, P programs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from llcjax.models.kernels import Products, tiles

_FORWARD = tiles.Launch(rows=64, warps=4, tiles=16, stages=2)
_BACKWARD = tiles.Launch(rows=16, warps=4, tiles=256, stages=2)  # more float32 rows would not fit the registers
_BACKWARD_HALF = tiles.Launch(rows=64, warps=4, tiles=32, stages=2)


class TailWeights(NamedTuple):
    """In float32, the norm's scale and shift folded into the first map.

    Matrices are rounded to the dtype of the activations. Gradients are float32: as sums over all rows they may lie
    beyond the range of float16.
    """

    output: Float[Array, "D D"]
    mlp_in: Float[Array, "D F"]
    mlp_in_bias: Float[Array, " F"]
    mlp_out: Float[Array, "F D"]
    mlp_out_bias: Float[Array, " D"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TailSpec:
    """What is compiled into the kernels."""

    products: Products
    layer_norm: bool
    double_residual: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def block_tail(
    spec: TailSpec, x_ND: Float[Array, "N D"], mixed_ND: Float[Array, "N D"], weights: TailWeights
) -> Float[Array, "N D"]:
    """The residual stream after a block, from that before it and the values that attention mixed.

    Args:
        spec: options.
        x_ND: residual stream; its dtype is that of the result.
        mixed_ND: mixed values, all heads.
        weights: of the maps.
    """
    return _forward(spec, x_ND, mixed_ND, weights)[0]


def _forward(spec: TailSpec, x_ND: Array, mixed_ND: Array, weights: TailWeights) -> tuple[Array, Any]:
    rows, width = x_ND.shape
    weights = TailWeights(*(leaf.astype(x_ND.dtype) if leaf.ndim == 2 else leaf for leaf in weights))
    per_program = _FORWARD.program_rows(rows)
    x, mixed = (tiles.padded(array, per_program) for array in (x_ND, mixed_ND))
    block = tiles.rows_of_program(per_program, width)
    found = pl.pallas_call(
        functools.partial(_forward_kernel, spec, _FORWARD.rows),
        grid=(len(x) // per_program,),
        in_specs=[block, block, *tiles.same_for_all(*weights)],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=spec.products.interpret,
        compiler_params=_FORWARD.compiler_params,
    )(x, mixed, *weights)
    return found[:rows], (x_ND, mixed_ND, weights)


def _backward(spec: TailSpec, kept: Any, dy_ND: Array) -> tuple[Array, Array, TailWeights]:
    x_ND, mixed_ND, weights = kept
    rows, width = x_ND.shape
    launch = _BACKWARD_HALF if tiles.is_half(x_ND.dtype) else _BACKWARD
    per_program = launch.program_rows(rows)
    x, mixed, dy = (tiles.padded(array, per_program) for array in (x_ND, mixed_ND, dy_ND))
    programs, block = len(x) // per_program, tiles.rows_of_program(per_program, width)
    shapes = [weight.shape if weight.ndim == 2 else (16, len(weight)) for weight in weights]
    dx, dmixed, *sums = pl.pallas_call(
        functools.partial(_backward_kernel, spec, launch.rows),
        grid=(programs,),
        in_specs=[block, block, block, *tiles.same_for_all(*weights)],
        out_specs=[block, block, *(tiles.matrix_of_program(*shape) for shape in shapes)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct(x.shape, mixed.dtype),
            *(jax.ShapeDtypeStruct((programs, *shape), jnp.float32) for shape in shapes),
        ],
        interpret=spec.products.interpret,
        compiler_params=launch.compiler_params,
    )(x, mixed, dy, *weights)
    totals = (jnp.sum(leaf, 0) for leaf in sums)
    gradient = (total if weight.ndim == 2 else total[0] for total, weight in zip(totals, weights, strict=True))
    return dx[:rows], dmixed[:rows], TailWeights(*gradient)


block_tail.defvjp(_forward, _backward)


def _forward_kernel(spec: TailSpec, rows: int, *refs: Any) -> None:
    x_ref, mixed_ref, *weight_refs, y_ref = refs
    weights = TailWeights(*(ref[...] for ref in weight_refs))

    def one(at: Any) -> None:
        x = x_ref[at, :]
        inside = _inside(spec, x, mixed_ref[at, :], weights)
        mlp = tiles.dot(spec.products, inside.hidden, weights.mlp_out) + weights.mlp_out_bias[None, :]
        y = inside.attended + mlp
        y_ref[at, :] = (y + x if spec.double_residual else y).astype(y_ref.dtype)

    tiles.for_each(rows, x_ref, one)


class _Inside(NamedTuple):
    """What a tile goes through."""

    attended: Array
    """Residual stream after attention."""
    normed: Array
    inverse: Array | None
    """1 / standard deviations; None without a norm."""
    hidden: Array


def _inside(spec: TailSpec, x: Array, mixed: Array, weights: TailWeights) -> _Inside:
    attended = x.astype(jnp.float32) + tiles.dot(spec.products, mixed, weights.output)
    normed, inverse = tiles.normalise(attended) if spec.layer_norm else (attended, None)
    before = tiles.dot(spec.products, normed, weights.mlp_in) + weights.mlp_in_bias[None, :]
    return _Inside(attended, normed, inverse, jnp.maximum(before, 0.0))


def _backward_kernel(spec: TailSpec, rows: int, *refs: Any) -> None:
    (x_ref, mixed_ref, dy_ref), weight_refs, (dx_ref, dmixed_ref), sum_refs = refs[:3], refs[3:8], refs[8:10], refs[10:]
    product = functools.partial(tiles.dot, spec.products)
    weights, ones = TailWeights(*(ref[...] for ref in weight_refs)), tiles.row_of_ones(rows)

    # In an order that lets go of each value early, and loads again what it can: registers are what is scarce.
    def one(tile: Array, sums: TailWeights) -> TailWeights:
        at = pl.ds(tile * rows, rows)
        _, normed, inverse, hidden = _inside(spec, x_ref[at, :], mixed_ref[at, :], weights)
        dy = dy_ref[at, :]
        mlp_out, mlp_out_bias = sums.mlp_out + product(hidden, dy, (0, 0)), sums.mlp_out_bias + product(ones, dy)
        d_before = jnp.where(hidden > 0, product(dy, weights.mlp_out, (1, 1)), 0.0)
        mlp_in = sums.mlp_in + product(normed, d_before, (0, 0))
        mlp_in_bias = sums.mlp_in_bias + product(ones, d_before)
        d_attended = product(d_before, weights.mlp_in, (1, 1))
        if inverse is not None:
            d_attended = tiles.normalise_backward(d_attended, normed, inverse)
        d_attended = d_attended + dy
        dx_ref[at, :] = (d_attended + dy if spec.double_residual else d_attended).astype(dx_ref.dtype)
        dmixed_ref[at, :] = product(d_attended, weights.output, (1, 1)).astype(dmixed_ref.dtype)
        output = sums.output + product(mixed_ref[at, :], d_attended, (0, 0))
        return TailWeights(output, mlp_in, mlp_in_bias, mlp_out, mlp_out_bias)

    start = TailWeights(*(jnp.zeros(ref.shape, jnp.float32) for ref in sum_refs))
    for ref, total in zip(sum_refs, lax.fori_loop(0, x_ref.shape[0] // rows, one, start), strict=True):
        ref[...] = total
