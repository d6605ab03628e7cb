"""What stands between two blocks, as one kernel a direction: residual sum, norm, positions; first of all the embedding.

Forward adds what a block found to the residual stream, or takes rows of the embedding, normalises them, and adds the
positions to a second copy. Backward computes the normalised rows again, adds up what comes back from all results, and
takes the sums over rows that are the gradients of the parameters on the way, in float32. So each row is read and
written once, where plain jax makes several passes each way. A program has some positions of some sequences, so that it
can add up the gradients of these positions.

Shape letters: B batch, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from llcjax.models.kernels import Products, tiles

_TILE = 2048
"""Numbers of a tile."""
_FORWARD_WARPS, _BACKWARD_WARPS = 8, 4
"""Of a program."""
_MOST_GROUPS = 8
"""Of sequences; a program goes through those of one."""


class Norm(NamedTuple):
    """Of a layer norm with positions, all in float32."""

    scale_D: Float[Array, " D"]
    """Of the normalised rows."""
    shift_D: Float[Array, " D"]
    """Added to them."""
    positions_TD: Float[Array, "T D"] | None
    """Added to all sequences alike in a second copy of the result; None where none is wanted."""


class _Rows(NamedTuple):
    """Results, or their gradients; None for what is not there."""

    stream_BTD: Any
    normed_BTD: Any
    placed_BTD: Any


class _Gradients(NamedTuple):
    """Of the rows, and sums over those of each program; None for what is not there."""

    d_stream_BTD: Any
    d_scale_D: Any
    d_shift_D: Any
    d_bias_D: Any
    d_positions_TD: Any


def fits(num_tokens: int, width: int) -> bool:
    """Whether the kernels take these sizes: a width that is a power of two, and tokens that tiles of rows divide.

    Example:
        >>> fits(1024, 256), fits(1024, 200), fits(100, 256)
        (True, False, False)
    """
    return 16 <= width <= _TILE and width & (width - 1) == 0 and num_tokens % _rows(width) == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def residual_norm(
    products: Products,
    stream_BTD: Float[Array, "B T D"],
    added_BTD: Float[Array, "B T D"],
    bias_D: Float[Array, " D"],
    norm: Norm,
) -> tuple[Float[Array, "B T D"], ...]:
    """The residual stream after a sum, its norm, and the norm with positions; without positions the norm alone.

    Args:
        products: whether to interpret the kernels.
        stream_BTD: rows, of sizes that `fits` accepts; the results have their dtype.
        added_BTD: what is added to them, of their dtype.
        bias_D: added with it, in float32.
        norm: parameters.
    """
    return _forward(products, stream_BTD, added_BTD, bias_D, norm)[0]


def _forward(
    products: Products, stream_BTD: Array, added_BTD: Array, bias_D: Array, norm: Norm
) -> tuple[tuple[Array, ...], Any]:
    blocks = _Blocks(*stream_BTD.shape)
    inputs, specs = (stream_BTD, added_BTD, bias_D), (blocks.rows, blocks.rows, blocks.vector)
    results = _normed(products, _sum_kernel, blocks, inputs, specs, norm, stream_BTD)
    wanted = results[1:2] if norm.positions_TD is None else tuple(results)
    return wanted, (results.stream_BTD, norm)


def _backward(products: Products, kept: Any, wanted: tuple[Array, ...]) -> tuple[Array, Array, Array, Norm]:
    stream_BTD, norm = kept
    wanted = _Rows(None, *wanted, None) if norm.positions_TD is None else _Rows(*wanted)
    found, d_norm = _gradients(products, stream_BTD, norm, wanted, biased=True)
    return found.d_stream_BTD, found.d_stream_BTD, found.d_bias_D, d_norm


residual_norm.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def embedding_norm(
    products: Products,
    dtype: jnp.dtype,
    table_VD: Float[Array, "V D"],
    tokens_BT: Int[Array, "B T"],
    norm: Norm,
) -> tuple[Float[Array, "B T D"], ...]:
    """Rows of a table, which begin the residual stream, their norm, and the norm with positions.

    Args:
        products: whether to interpret the kernels.
        dtype: of the results.
        table_VD: in float32, in which the gradients of its rows are added up.
        tokens_BT: token ids, of sizes that `fits` accepts; as with `jax.numpy.take` negative ones count from the end,
            and the row of one beyond is NaN, which is added to no row's gradient.
        norm: parameters, with positions.
    """
    return _embedding_forward(products, dtype, table_VD, tokens_BT, norm)[0]


def _embedding_forward(
    products: Products, dtype: jnp.dtype, table_VD: Array, tokens_BT: Array, norm: Norm
) -> tuple[tuple[Array, ...], Any]:
    blocks = _Blocks(*tokens_BT.shape, table_VD.shape[1])
    # Or XLA would draw the batch anew for each number that backward adds to the table.
    tokens_BT = lax.optimization_barrier(tokens_BT)
    inputs, specs = (tokens_BT, table_VD), (blocks.tokens, pl.BlockSpec(table_VD.shape, lambda tile, group: (0, 0)))
    stream_BTD = jax.ShapeDtypeStruct((*tokens_BT.shape, table_VD.shape[1]), dtype)
    results = _normed(products, _embedding_kernel, blocks, inputs, specs, norm, stream_BTD)
    return tuple(results), (table_VD, tokens_BT, results.stream_BTD, norm)


def _embedding_backward(
    products: Products, dtype: jnp.dtype, kept: Any, wanted: tuple[Array, ...]
) -> tuple[Array, None, Norm]:
    table_VD, tokens_BT, stream_BTD, norm = kept
    found, d_norm = _gradients(products, stream_BTD, norm, _Rows(*wanted), biased=False)
    # A GPU adds to float32 in memory in one instruction; 16 bits take a loop.
    d_rows_BTD = found.d_stream_BTD.astype(table_VD.dtype)
    return jnp.zeros_like(table_VD).at[tokens_BT].add(d_rows_BTD), None, d_norm


embedding_norm.defvjp(_embedding_forward, _embedding_backward)


class _Blocks:
    """Which part of each array a program sees: some positions of some sequences.

    A batch without a divisor up to 8 is one group, with an eighth of the programs.
    """

    def __init__(self, batch: int, tokens: int, width: int) -> None:
        rows = _rows(width)
        groups = max(count for count in range(1, _MOST_GROUPS + 1) if batch % count == 0)
        self.grid = tokens // rows, groups
        self.rows = pl.BlockSpec((batch // groups, rows, width), lambda tile, group: (group, tile, 0))
        self.tokens = pl.BlockSpec((batch // groups, rows), lambda tile, group: (group, tile))
        self.vector = pl.BlockSpec((width,), lambda tile, group: (0,))
        self.positions = pl.BlockSpec((rows, width), lambda tile, group: (tile, 0))
        # What programs leave to be added up.
        self.sum = pl.BlockSpec((None, None, width), lambda tile, group: (tile, group, 0))
        self.sums_of_positions = pl.BlockSpec((None, rows, width), lambda tile, group: (group, tile, 0))


def _normed(
    products: Products,
    kernel: Callable[..., None],
    blocks: _Blocks,
    inputs: tuple[Array, ...],
    specs: tuple[pl.BlockSpec, ...],
    norm: Norm,
    stream_BTD: Any,
) -> _Rows:
    rows, placed = jax.ShapeDtypeStruct(stream_BTD.shape, stream_BTD.dtype), norm.positions_TD is not None
    norm_specs = jax.tree.map(lambda array: blocks.vector if array.ndim == 1 else blocks.positions, norm)
    return _Rows(
        *pl.pallas_call(
            kernel,
            grid=blocks.grid,
            in_specs=[*specs, norm_specs],
            out_specs=_Rows(blocks.rows, blocks.rows, blocks.rows if placed else None),
            out_shape=_Rows(rows, rows, rows if placed else None),
            interpret=products.interpret,
            compiler_params=triton.CompilerParams(num_warps=_FORWARD_WARPS, num_stages=1),
        )(*inputs, norm)
    )


def _gradients(
    products: Products, stream_BTD: Array, norm: Norm, wanted: _Rows, *, biased: bool
) -> tuple[_Gradients, Norm]:
    """Of the stream and, if one was added to all rows, of a bias; and of the norm."""
    blocks, (tokens, width) = _Blocks(*stream_BTD.shape), stream_BTD.shape[1:]
    placed = norm.positions_TD is not None
    vector = jax.ShapeDtypeStruct((*blocks.grid, width), jnp.float32)
    positions = jax.ShapeDtypeStruct((blocks.grid[1], tokens, width), jnp.float32)
    found = _Gradients(
        *pl.pallas_call(
            _gradient_kernel,
            grid=blocks.grid,
            in_specs=[blocks.rows, blocks.vector, jax.tree.map(lambda _: blocks.rows, wanted)],
            out_specs=_Gradients(
                blocks.rows, blocks.sum, blocks.sum, blocks.sum if biased else None,
                blocks.sums_of_positions if placed else None,
            ),
            out_shape=_Gradients(
                jax.ShapeDtypeStruct(stream_BTD.shape, stream_BTD.dtype), vector, vector, vector if biased else None,
                positions if placed else None,
            ),
            interpret=products.interpret,
            compiler_params=triton.CompilerParams(num_warps=_BACKWARD_WARPS, num_stages=1),
        )(stream_BTD, norm.scale_D, wanted)
    )  # fmt: skip
    d_scale_D, d_shift_D = jnp.sum(found.d_scale_D, (0, 1)), jnp.sum(found.d_shift_D, (0, 1))
    d_positions_TD = jnp.sum(found.d_positions_TD, 0) if placed else None
    d_bias_D = jnp.sum(found.d_bias_D, (0, 1)) if biased else None
    return found._replace(d_bias_D=d_bias_D), Norm(d_scale_D, d_shift_D, d_positions_TD)


def _rows(width: int) -> int:
    """Of a tile."""
    return _TILE // width


def _sum_kernel(stream_ref: Any, added_ref: Any, bias_ref: Any, norm: Norm, *results: Any) -> None:
    bias = bias_ref[...][None]

    def rows(sequence: Array) -> Array:
        return stream_ref[sequence].astype(jnp.float32) + added_ref[sequence].astype(jnp.float32) + bias

    _write_normed(rows, stream_ref.shape[0], norm, _Rows(*results))


def _embedding_kernel(tokens_ref: Any, table_ref: Any, norm: Norm, *results: Any) -> None:
    vocabulary = table_ref.shape[0]

    def rows(sequence: Array) -> Array:
        tokens = tokens_ref[sequence]
        tokens = jnp.where(tokens < 0, tokens + vocabulary, tokens)
        known = (tokens >= 0) & (tokens < vocabulary)
        return jnp.where(known[:, None], table_ref[jnp.where(known, tokens, 0), :], jnp.nan)

    _write_normed(rows, tokens_ref.shape[0], norm, _Rows(*results))


def _write_normed(rows: Callable[[Array], Array], count: int, norm: Norm, results: _Rows) -> None:
    """Writes the rows of so many sequences, their norms, and where there are positions the norms with these."""
    scale, shift = norm.scale_D[...][None], norm.shift_D[...][None]
    positions = None if norm.positions_TD is None else norm.positions_TD[...]
    dtype = results.stream_BTD.dtype

    def one(sequence: Array, carry: None) -> None:
        x = rows(sequence).astype(dtype)
        results.stream_BTD[sequence] = x
        normed = tiles.normalise(x.astype(jnp.float32))[0] * scale + shift  # of rounded rows, as backward will see them
        results.normed_BTD[sequence] = normed.astype(dtype)
        if positions is not None:
            results.placed_BTD[sequence] = (normed + positions).astype(dtype)

    lax.fori_loop(0, count, one, None)


def _gradient_kernel(stream_ref: Any, scale_ref: Any, wanted: _Rows, *results: Any) -> None:
    found, scale, last = _Gradients(*results), scale_ref[...][None], stream_ref.shape[0] - 1
    placed, biased = found.d_positions_TD is not None, found.d_bias_D is not None

    def rows(sequence: Array) -> tuple[Array, _Rows]:
        return stream_ref[sequence], jax.tree.map(lambda ref: ref[sequence], wanted)

    def one(sequence: Array, carry: tuple[_Gradients, Any]) -> tuple[_Gradients, Any]:
        sums, (x, d_rows) = carry
        following = rows(jnp.minimum(sequence + 1, last))  # on their way while these are worked on
        normed, inverse = tiles.normalise(x.astype(jnp.float32))
        d_after, d_normed, d_placed = jax.tree.map(lambda tile: tile.astype(jnp.float32), d_rows)
        gradient = d_normed + d_placed if placed else d_normed
        d_x = tiles.normalise_backward(gradient * scale, normed, inverse)
        d_x = d_x if d_after is None else d_x + d_after
        found.d_stream_BTD[sequence] = d_x.astype(stream_ref.dtype)
        here = _Gradients(None, gradient * normed, gradient, d_x if biased else None, d_placed)
        return jax.tree.map(jnp.add, sums, here), following

    zeros = jnp.zeros(stream_ref.shape[1:], jnp.float32)
    start = _Gradients(None, zeros, zeros, zeros if biased else None, zeros if placed else None)
    sums, _ = lax.fori_loop(0, last + 1, one, (start, rows(jnp.int32(0))))
    found.d_scale_D[...], found.d_shift_D[...] = jnp.sum(sums.d_scale_D, 0), jnp.sum(sums.d_shift_D, 0)
    if biased:
        found.d_bias_D[...] = jnp.sum(sums.d_bias_D, 0)
    if placed:
        found.d_positions_TD[...] = sums.d_positions_TD
