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


class TailWeights(NamedTuple):
    """Matrices in the dtype of the activations or float32, the norm's scale and shift folded into the first map."""

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
    per_program = tiles.program_rows(len(x_ND), backward=False)
    x, mixed = (tiles.padded(array, per_program) for array in (x_ND, mixed_ND))
    block = tiles.rows_of_program(per_program, width)
    found = pl.pallas_call(
        functools.partial(_forward_kernel, spec),
        grid=(len(x) // per_program,),
        in_specs=[block, block, *tiles.same_for_all(*weights)],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=spec.products.interpret,
        compiler_params=tiles.FOUR_WARPS,
    )(x, mixed, *weights)
    return found[:rows], (x_ND, mixed_ND, weights)


def _backward(spec: TailSpec, kept: Any, dy_ND: Array) -> tuple[Array, Array, TailWeights]:
    x_ND, mixed_ND, weights = kept
    rows, width = x_ND.shape
    per_program = tiles.program_rows(rows, backward=True)
    x, mixed, dy = (tiles.padded(array, per_program) for array in (x_ND, mixed_ND, dy_ND))
    programs, block = len(x) // per_program, tiles.rows_of_program(per_program, width)
    shapes = [weights.output.shape, weights.mlp_in.shape, weights.mlp_out.shape]
    shapes += [(16, len(bias)) for bias in (weights.mlp_in_bias, weights.mlp_out_bias)]
    dx, dmixed, *sums = pl.pallas_call(
        functools.partial(_backward_kernel, spec, tiles.backward_rows(x.dtype, 16)),
        grid=(programs,),
        in_specs=[block, block, block, *tiles.same_for_all(*weights)],
        out_specs=[block, block, *(tiles.matrix_of_program(*shape) for shape in shapes)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct(x.shape, mixed.dtype),
            *(jax.ShapeDtypeStruct((programs, *shape), jnp.float32) for shape in shapes),
        ],
        interpret=spec.products.interpret,
        compiler_params=tiles.FOUR_WARPS,
    )(x, mixed, dy, *weights)
    output, mlp_in, mlp_out, mlp_in_bias, mlp_out_bias = (jnp.sum(leaf, 0) for leaf in sums)
    gradient = TailWeights(output, mlp_in, mlp_in_bias[0], mlp_out, mlp_out_bias[0])
    gradient = jax.tree.map(lambda leaf, weight: leaf.astype(weight.dtype), gradient, weights)
    return dx[:rows], dmixed[:rows], gradient


block_tail.defvjp(_forward, _backward)


def _forward_kernel(spec: TailSpec, *refs: Any) -> None:
    x_ref, mixed_ref, *weight_refs, y_ref = refs
    weights = TailWeights(*(ref[...] for ref in weight_refs))

    def one(tile: Array, carry: None) -> None:
        at = pl.ds(tile * tiles.FORWARD_ROWS, tiles.FORWARD_ROWS)
        x = x_ref[at, :]
        inside = _inside(spec, x, mixed_ref[at, :], weights)
        mlp = tiles.dot(spec.products, inside.hidden, weights.mlp_out) + weights.mlp_out_bias[None, :]
        y = inside.attended + mlp
        y_ref[at, :] = (y + x if spec.double_residual else y).astype(y_ref.dtype)
        return carry

    lax.fori_loop(0, x_ref.shape[0] // tiles.FORWARD_ROWS, one, None)


class _Inside(NamedTuple):
    """What a tile goes through."""

    attended: Array
    """Residual stream after attention."""
    normed: Array
    inverse: Array | None
    """1 / standard deviations; None without a norm."""
    before: Array
    """Hidden layer before relu."""
    hidden: Array


def _inside(spec: TailSpec, x: Array, mixed: Array, weights: TailWeights) -> _Inside:
    attended = x.astype(jnp.float32) + tiles.dot(spec.products, mixed, weights.output)
    normed, inverse = tiles.normalise(attended) if spec.layer_norm else (attended, None)
    before = tiles.dot(spec.products, normed, weights.mlp_in) + weights.mlp_in_bias[None, :]
    return _Inside(attended, normed, inverse, before, jnp.maximum(before, 0.0))


def _backward_kernel(spec: TailSpec, rows: int, *refs: Any) -> None:
    (x_ref, mixed_ref, dy_ref), weight_refs, (dx_ref, dmixed_ref), sum_refs = refs[:3], refs[3:8], refs[8:10], refs[10:]
    product = functools.partial(tiles.dot, spec.products)
    weights = TailWeights(*(ref[...] for ref in weight_refs))
    ones = tiles.row_of_ones(rows)

    def one(tile: Array, sums: list[Array]) -> list[Array]:
        at = pl.ds(tile * rows, rows)
        x, mixed, dy = x_ref[at, :], mixed_ref[at, :], dy_ref[at, :]
        inside = _inside(spec, x, mixed, weights)
        d_before = jnp.where(inside.before > 0, product(dy, weights.mlp_out, (1, 1)), 0.0)
        d_attended = product(d_before, weights.mlp_in, (1, 1))
        if inside.inverse is not None:
            d_attended = tiles.normalise_backward(d_attended, inside.normed, inside.inverse)
        d_attended = d_attended + dy
        dmixed_ref[at, :] = product(d_attended, weights.output, (1, 1)).astype(dmixed_ref.dtype)
        dx_ref[at, :] = (d_attended + dy if spec.double_residual else d_attended).astype(dx_ref.dtype)
        found = (
            product(mixed, d_attended, (0, 0)),
            product(inside.normed, d_before, (0, 0)),
            product(inside.hidden, dy, (0, 0)),
            product(ones, d_before),
            product(ones, dy),
        )
        return [total + more for total, more in zip(sums, found, strict=True)]

    start = [jnp.zeros(ref.shape, jnp.float32) for ref in sum_refs]
    for ref, total in zip(sum_refs, lax.fori_loop(0, x_ref.shape[0] // rows, one, start), strict=True):
        ref[...] = total
