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
    inputs = [(blocks.rows, stream_BTD), (blocks.rows, added_BTD), (blocks.vector, bias_D)]
    results = _normed(products, _sum_kernel, blocks, inputs, norm, stream_BTD)
    return results if norm.positions_TD is not None else results[1:], (results[0], norm)


def _backward(products: Products, kept: Any, wanted: tuple[Array, ...]) -> tuple[Array, Array, Array, Norm]:
    d_x_BTD, d_norm, (d_bias_D,) = _gradients(products, *kept, wanted, biased=True)
    return d_x_BTD, d_x_BTD, d_bias_D, d_norm


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
        tokens_BT: token ids, of sizes that `fits` accepts; rows of one that is none are NaN.
        norm: parameters, with positions.
    """
    return _embedding_forward(products, dtype, table_VD, tokens_BT, norm)[0]


def _embedding_forward(
    products: Products, dtype: jnp.dtype, table_VD: Array, tokens_BT: Array, norm: Norm
) -> tuple[tuple[Array, ...], Any]:
    blocks = _Blocks(*tokens_BT.shape, table_VD.shape[1])
    # Or XLA would draw the batch anew for each number that backward adds to the table.
    tokens_BT = lax.optimization_barrier(tokens_BT)
    table = pl.BlockSpec(table_VD.shape, lambda tile, group: (0, 0))
    inputs = [(blocks.tokens, tokens_BT), (table, table_VD)]
    stream_BTD = jax.ShapeDtypeStruct((*tokens_BT.shape, table_VD.shape[1]), dtype)
    results = _normed(products, _embedding_kernel, blocks, inputs, norm, stream_BTD)
    return results, (table_VD, tokens_BT, results[0], norm)


def _embedding_backward(
    products: Products, dtype: jnp.dtype, kept: Any, wanted: tuple[Array, ...]
) -> tuple[Array, None, Norm]:
    table_VD, tokens_BT, stream_BTD, norm = kept
    d_x_BTD, d_norm, _ = _gradients(products, stream_BTD, norm, wanted, biased=False)
    # A GPU adds to float32 in memory in one instruction; 16 bits take a loop.
    return jnp.zeros_like(table_VD).at[tokens_BT].add(d_x_BTD.astype(table_VD.dtype)), None, d_norm


embedding_norm.defvjp(_embedding_forward, _embedding_backward)


class _Blocks:
    """Which part of each array a program sees: some positions of some sequences."""

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
    products: Products, kernel: Callable[..., None], blocks: _Blocks, inputs: list[Any], norm: Norm, stream_BTD: Any
) -> tuple[Array, ...]:
    """The stream, its norm, and the norm with positions where there are any."""
    inputs = [*inputs, (blocks.vector, norm.scale_D), (blocks.vector, norm.shift_D)]
    if norm.positions_TD is not None:
        inputs.append((blocks.positions, norm.positions_TD))
    outputs = [(blocks.rows, stream_BTD)] * (2 if norm.positions_TD is None else 3)
    return tuple(_call(products, kernel, _FORWARD_WARPS, blocks.grid, inputs, outputs))


def _gradients(
    products: Products, stream_BTD: Array, norm: Norm, wanted: tuple[Array, ...], *, biased: bool
) -> tuple[Array, Norm, list[Array]]:
    """Of the stream, of the norm, and, if one was added to all rows, of a bias."""
    blocks, (tokens, width) = _Blocks(*stream_BTD.shape), stream_BTD.shape[1:]
    placed = norm.positions_TD is not None
    inputs = [(blocks.rows, stream_BTD), (blocks.vector, norm.scale_D), *((blocks.rows, array) for array in wanted)]
    vectors = [(blocks.sum, jax.ShapeDtypeStruct((*blocks.grid, width), jnp.float32))] * (2 + biased)
    of_positions = jax.ShapeDtypeStruct((blocks.grid[1], tokens, width), jnp.float32)
    outputs = [(blocks.rows, stream_BTD), *vectors, *[(blocks.sums_of_positions, of_positions)] * placed]
    kernel = functools.partial(_gradient_kernel, placed, biased)
    d_x_BTD, *parts = _call(products, kernel, _BACKWARD_WARPS, blocks.grid, inputs, outputs)
    d_scale_D, d_shift_D, *d_bias = (jnp.sum(part, (0, 1)) for part in parts[: 2 + biased])
    d_norm = Norm(d_scale_D, d_shift_D, jnp.sum(parts[-1], 0) if placed else None)
    return d_x_BTD, d_norm, d_bias


def _call(
    products: Products,
    kernel: Callable[..., None],
    warps: int,
    grid: tuple[int, int],
    inputs: list[tuple[pl.BlockSpec, Array]],
    outputs: list[tuple[pl.BlockSpec, Any]],
) -> list[Array]:
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[block for block, _ in inputs],
        out_specs=[block for block, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for _, array in outputs],
        interpret=products.interpret,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
    )(*(array for _, array in inputs))


def _rows(width: int) -> int:
    """Of a tile."""
    return _TILE // width


def _sum_kernel(stream_ref: Any, added_ref: Any, bias_ref: Any, *refs: Any) -> None:
    bias = bias_ref[...][None]

    def rows(sequence: Array) -> Array:
        return stream_ref[sequence].astype(jnp.float32) + added_ref[sequence].astype(jnp.float32) + bias

    _write_normed(rows, stream_ref.shape[0], *refs)


def _embedding_kernel(tokens_ref: Any, table_ref: Any, *refs: Any) -> None:
    vocabulary = table_ref.shape[0]

    def rows(sequence: Array) -> Array:
        tokens = tokens_ref[sequence]
        known = (tokens >= 0) & (tokens < vocabulary)
        return jnp.where(known[:, None], table_ref[jnp.where(known, tokens, 0), :], jnp.nan)

    _write_normed(rows, tokens_ref.shape[0], *refs)


def _write_normed(rows: Callable[[Array], Array], count: int, scale_ref: Any, shift_ref: Any, *refs: Any) -> None:
    """Writes the rows of so many sequences, their norms, and where there are positions the norms with these."""
    *positions, stream_ref, normed_ref = refs[:-1] if len(refs) == 4 else refs
    scale, shift, positions = scale_ref[...][None], shift_ref[...][None], [ref[...] for ref in positions]

    def one(sequence: Array, carry: None) -> None:
        x = rows(sequence).astype(stream_ref.dtype)
        stream_ref[sequence] = x
        normed = tiles.normalise(x.astype(jnp.float32))[0] * scale + shift  # of rounded rows, as backward will see them
        normed_ref[sequence] = normed.astype(normed_ref.dtype)
        if positions:
            refs[-1][sequence] = (normed + positions[0]).astype(normed_ref.dtype)

    lax.fori_loop(0, count, one, None)


def _gradient_kernel(placed: bool, biased: bool, stream_ref: Any, scale_ref: Any, *refs: Any) -> None:
    wanted, (d_x_ref, *sums_refs) = refs[: 1 + 2 * placed], refs[1 + 2 * placed :]
    scale, last = scale_ref[...][None], stream_ref.shape[0] - 1

    def rows(sequence: Array) -> list[Array]:
        return [ref[sequence] for ref in (stream_ref, *wanted)]

    def one(sequence: Array, carry: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        sums, here = carry
        following = rows(jnp.minimum(sequence + 1, last))  # on their way while these are worked on
        x, *d_stream, d_normed = (tile.astype(jnp.float32) for tile in here[: 2 + placed])
        d_placed = [here[3].astype(jnp.float32)] if placed else []
        normed, inverse = tiles.normalise(x)
        gradient = sum(d_placed, d_normed)
        d_x = sum(d_stream, tiles.normalise_backward(gradient * scale, normed, inverse))
        d_x_ref[sequence] = d_x.astype(d_x_ref.dtype)
        more = [gradient * normed, gradient, *[d_x] * biased, *d_placed]
        return [total + part for total, part in zip(sums, more, strict=True)], following

    zeros = jnp.zeros(stream_ref.shape[1:], jnp.float32)
    sums, _ = lax.fori_loop(0, last + 1, one, ([zeros] * len(sums_refs), rows(jnp.int32(0))))
    for index, (ref, found) in enumerate(zip(sums_refs, sums, strict=True)):
        ref[...] = jnp.sum(found, 0) if index < 2 + biased else found
