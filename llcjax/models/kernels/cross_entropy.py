"""Cross-entropy over a large vocabulary as one kernel a direction, after the products that make the logits.

Logits of a language model are its largest array: 2 GB a chain in float32 at 102,400 tokens and a vocabulary of 5,000.
Plain jax reads them twice for the normaliser, and backward once more for what a product takes and once for sums over
the rows, the bias's gradient. Here forward reads them once, and backward turns them into their gradients in place,
adding up those of the bias on the way. The products themselves are left to the matrix library. Exponentials are to base
2, which is one instruction of a GPU.

Shape letters: N rows (batch x token), R rows of a tile, D model width, V vocabulary, P programs.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from llcjax._compat import CROSS_ENTROPY_KERNEL
from llcjax.models.kernels import Products, tiles

_FORWARD = tiles.Launch(rows=2, warps=1, tiles=1, stages=1)
_BACKWARD = tiles.Launch(rows=2, warps=1, tiles=64, stages=1)
_COLUMNS = 512
"""Most columns of a tile."""
_NEVER = -1e30
"""Logit of the columns that fill the last tile."""


def linear_cross_entropy(
    products: Products,
    x_ND: Float[Array, "N D"],
    weight_DV: Float[Array, "D V"],
    bias_V: Float[Array, " V"],
    labels_N: Int[Array, " N"],
) -> Float[Array, " N"]:
    """-log softmax(x W + b)[label] of each row, in float32.

    Args:
        products: whether to interpret the kernels.
        x_ND: rows; products round to their dtype, and so do the logits, to which the bias is added in float32.
        weight_DV: matrix of the same dtype.
        bias_V: in float32.
        labels_N: token ids.
    """
    rows, missing = len(x_ND), -len(bias_V) % _columns(len(bias_V))
    x_ND = tiles.padded(x_ND, _BACKWARD.program_rows(rows))
    losses_N = _losses(
        products,
        x_ND,
        jnp.pad(weight_DV, ((0, 0), (0, missing))),
        jnp.pad(bias_V, (0, missing), constant_values=_NEVER),
        jnp.pad(labels_N, (0, len(x_ND) - rows)),
    )
    return losses_N[:rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(products: Products, x_ND: Array, weight_DV: Array, bias_V: Array, labels_N: Array) -> Float[Array, " N"]:
    """The same of whole tiles."""
    return _forward(products, x_ND, weight_DV, bias_V, labels_N)[0]


def _forward(products: Products, x_ND: Array, weight_DV: Array, bias_V: Array, labels_N: Array) -> tuple[Array, Any]:
    scores_NV = _product(x_ND, weight_DV, (1, 0))
    rows, columns = _FORWARD.rows, _columns(len(bias_V))
    normaliser_N = pl.pallas_call(
        functools.partial(_forward_kernel, products, columns),
        grid=(len(x_ND) // rows,),
        in_specs=[tiles.rows_of_program(rows, len(bias_V)), *tiles.same_for_all(bias_V)],
        out_specs=pl.BlockSpec((rows,), lambda program: (program,)),
        out_shape=jax.ShapeDtypeStruct((len(x_ND),), jnp.float32),
        interpret=products.interpret,
        name=f"{CROSS_ENTROPY_KERNEL}_{scores_NV.dtype}",  # by which it is known which options suit a program
        compiler_params=_FORWARD.compiler_params,
    )(scores_NV, bias_V)
    picked_N = jnp.take_along_axis(scores_NV, labels_N[:, None], 1)[:, 0].astype(jnp.float32) + bias_V[labels_N]
    return normaliser_N - picked_N, (x_ND, weight_DV, bias_V, labels_N, scores_NV, normaliser_N)


def _backward(products: Products, kept: Any, wanted_N: Array) -> tuple[Array, Array, Array, None]:
    x_ND, weight_DV, bias_V, labels_N, scores_NV, normaliser_N = kept
    rows, columns = _BACKWARD.program_rows(len(x_ND)), _columns(len(bias_V))
    programs = len(x_ND) // rows
    block = pl.BlockSpec((rows, columns), lambda program, part: (program, part))
    along = pl.BlockSpec((rows,), lambda program, part: (program,))
    d_scores_NV, sums_PV = pl.pallas_call(
        functools.partial(_backward_kernel, products, _BACKWARD.rows),
        grid=(programs, len(bias_V) // columns),
        in_specs=[block, pl.BlockSpec((columns,), lambda program, part: (part,)), along, along, along],
        out_specs=[block, pl.BlockSpec((None, columns), lambda program, part: (program, part))],
        out_shape=[
            jax.ShapeDtypeStruct(scores_NV.shape, scores_NV.dtype),
            jax.ShapeDtypeStruct((programs, len(bias_V)), jnp.float32),
        ],
        input_output_aliases={0: 0},  # nothing reads the logits after this
        interpret=products.interpret,
        compiler_params=_BACKWARD.compiler_params,
    )(scores_NV, bias_V, normaliser_N, labels_N, wanted_N)
    return (
        _product(d_scores_NV, weight_DV, (1, 1)),
        _product(x_ND, d_scores_NV, (0, 0)),
        jnp.sum(sums_PV, 0),
        None,
    )


_losses.defvjp(_forward, _backward)


def _columns(vocabulary: int) -> int:
    """Of a tile: a power of two."""
    return min(_COLUMNS, 1 << (vocabulary - 1).bit_length())


def _product(a: Array, b: Array, sides: tuple[int, int]) -> Array:
    """Product over one axis of each, in their dtype."""
    return lax.dot_general(a, b, (((sides[0],), (sides[1],)), ((), ())), preferred_element_type=a.dtype)


def _forward_kernel(products: Products, columns: int, scores_ref: Any, bias_ref: Any, normaliser_ref: Any) -> None:
    def one(part: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        at = pl.ds(part * columns, columns)
        logits = scores_ref[:, at].astype(jnp.float32) + bias_ref[at][None]
        largest, total = carry
        # The maximum stays a logit: where it is that of the label, the loss is exactly that of the others.
        now = jnp.maximum(largest, jnp.max(logits, 1))
        here = jnp.sum(tiles.exp2(products, (logits - now[:, None]) * tiles.LOG2_E), 1)
        return now, total * tiles.exp2(products, (largest - now) * tiles.LOG2_E) + here

    rows = scores_ref.shape[0]
    start = jnp.full((rows,), _NEVER, jnp.float32), jnp.zeros((rows,), jnp.float32)
    largest, total = lax.fori_loop(0, scores_ref.shape[1] // columns, one, start)
    normaliser_ref[...] = largest + jnp.log(total)


def _backward_kernel(
    products: Products,
    rows: int,
    scores_ref: Any,
    bias_ref: Any,
    normaliser_ref: Any,
    labels_ref: Any,
    wanted_ref: Any,
    d_scores_ref: Any,
    sums_ref: Any,
) -> None:
    tile, bias = (rows, scores_ref.shape[1]), bias_ref[...]
    column = pl.program_id(1) * tile[1] + lax.broadcasted_iota(jnp.int32, tile, 1)

    def one(index: Array, sums: Array) -> Array:
        at = pl.ds(index * rows, rows)
        shift = bias[None] - normaliser_ref[at][:, None]
        share = tiles.exp2(products, (scores_ref[at, :].astype(jnp.float32) + shift) * tiles.LOG2_E)
        gradient = jnp.where(column == labels_ref[at][:, None], share - 1, share) * wanted_ref[at][:, None]
        d_scores_ref[at, :] = gradient.astype(d_scores_ref.dtype)
        return sums + gradient

    # Sums over rows are taken once, after the loop: each needs the other threads.
    sums_ref[...] = jnp.sum(lax.fori_loop(0, scores_ref.shape[0] // rows, one, jnp.zeros(tile, jnp.float32)), 0)
