"""Residual sum, norm and positions of a block as one kernel a direction, which reads and writes each row once.

Forward adds what a block found to the residual stream, normalises the sum, and adds the positions to a second copy.
Backward computes the normalised rows again, adds up what comes back from all three results, and takes the sums over
rows that are the gradients of the parameters on the way, in float32. Plain jax makes several passes over the rows each
way. A program has some positions of some sequences, so that it can add up the gradients of these positions.

Shape letters: B batch, T tokens, D model width, G groups of sequences, P tiles of positions.
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
from jaxtyping import Array, Float

from llcjax.models.kernels import Products, tiles

_TILE = 2048
"""Numbers of a tile."""
_WARPS = 4
_MOST_GROUPS = 8


class _Spec(NamedTuple):
    """What is compiled into the kernels."""

    products: Products
    added: bool
    """Whether something is added to the rows."""
    placed: bool
    """Whether there are positions; without them nothing but the norm is wanted."""


def fits(num_tokens: int, width: int) -> bool:
    """Whether the kernels take these sizes: a width that is a power of two, and tokens that tiles of rows divide.

    Example:
        >>> fits(1024, 256), fits(1024, 200), fits(100, 256)
        (True, False, False)
    """
    return 16 <= width <= _TILE and width & (width - 1) == 0 and num_tokens % _rows(width) == 0


def residual_norm(
    products: Products,
    stream_BTD: Float[Array, "B T D"],
    added: tuple[Float[Array, "B T D"], Float[Array, " D"]] | None,
    scale_D: Float[Array, " D"],
    shift_D: Float[Array, " D"],
    positions_TD: Float[Array, "T D"] | None = None,
) -> tuple[Float[Array, "B T D"], ...]:
    """The residual stream after a sum, its norm, and the norm with positions; without positions the norm alone.

    Args:
        products: whether to interpret the kernels.
        stream_BTD: rows, of sizes that `fits` accepts; the results have their dtype.
        added: what is added to them, of their dtype, and a bias in float32 like all that follows.
        scale_D: of the normalised rows.
        shift_D: added to them.
        positions_TD: added to all sequences alike.
    """
    added_BTD, bias_D = (None, None) if added is None else added
    spec = _Spec(products, added is not None, positions_TD is not None)
    return _residual_norm(spec, stream_BTD, added_BTD, bias_D, scale_D, shift_D, positions_TD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _residual_norm(spec: _Spec, *arrays: Array | None) -> tuple[Array, ...]:
    return _forward(spec, *arrays)[0]


def _forward(
    spec: _Spec,
    stream_BTD: Array,
    added_BTD: Array | None,
    bias_D: Array | None,
    scale_D: Array,
    shift_D: Array,
    positions_TD: Array | None,
) -> tuple[tuple[Array, ...], Any]:
    rows, vector, places = _Blocks(stream_BTD.shape).inputs()
    inputs = [
        (rows, stream_BTD), (rows, added_BTD), (vector, bias_D), (vector, scale_D), (vector, shift_D),
        (places, positions_TD),
    ]  # fmt: skip
    found = _call(spec, _forward_kernel, inputs, [(rows, stream_BTD)] * (spec.added + 1 + spec.placed))
    if not spec.added:
        found = [stream_BTD, *found]
    return tuple(found if spec.placed else found[1:]), (found[0], scale_D)


def _backward(spec: _Spec, kept: Any, wanted: tuple[Array, ...]) -> tuple[Array | None, ...]:
    stream_BTD, scale_D = kept
    blocks = _Blocks(stream_BTD.shape)
    rows, vector, _ = blocks.inputs()
    inputs = [(rows, stream_BTD), (vector, scale_D), *((rows, array) for array in wanted)]
    sums, of_positions = blocks.sums()
    outputs = [(rows, stream_BTD), *[sums] * (2 + spec.added), *[of_positions] * spec.placed]
    d_x_BTD, *parts = _call(spec, _backward_kernel, inputs, outputs)
    d_scale_D, d_shift_D, *d_bias = (jnp.sum(part, (0, 1)) for part in parts[: 2 + spec.added])
    d_added = (d_x_BTD, *d_bias) if spec.added else (None, None)
    return d_x_BTD, *d_added, d_scale_D, d_shift_D, jnp.sum(parts[-1], 0) if spec.placed else None


_residual_norm.defvjp(_forward, _backward)


class _Blocks:
    """Which part of each array a program sees: some positions of some sequences."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.batch, self.tokens, self.width = shape
        self.rows = _rows(self.width)
        self.groups = max(count for count in range(1, _MOST_GROUPS + 1) if self.batch % count == 0)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of positions, and groups of sequences."""
        return self.tokens // self.rows, self.groups

    def inputs(self) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
        """Of rows, of a vector, of positions."""
        return (
            pl.BlockSpec((self.batch // self.groups, self.rows, self.width), lambda tile, group: (group, tile, 0)),
            pl.BlockSpec((self.width,), lambda tile, group: (0,)),
            pl.BlockSpec((self.rows, self.width), lambda tile, group: (tile, 0)),
        )

    def sums(self) -> tuple[tuple[pl.BlockSpec, Any], tuple[pl.BlockSpec, Any]]:
        """Of all rows of a program, and of those of each position, in float32, with their shapes."""
        return (
            (
                pl.BlockSpec((None, None, self.width), lambda tile, group: (tile, group, 0)),
                jax.ShapeDtypeStruct((*self.grid, self.width), jnp.float32),
            ),
            (
                pl.BlockSpec((None, self.rows, self.width), lambda tile, group: (group, tile, 0)),
                jax.ShapeDtypeStruct((self.groups, self.tokens, self.width), jnp.float32),
            ),
        )


def _call(
    spec: _Spec, kernel: Callable[..., None], inputs: list[tuple[pl.BlockSpec, Array | None]], outputs: list[Any]
) -> list[Array]:
    """Runs a kernel on what there is of its inputs, the first of which are rows."""
    given = [(block, array) for block, array in inputs if array is not None]
    return pl.pallas_call(
        functools.partial(kernel, spec),
        grid=_Blocks(given[0][1].shape).grid,
        in_specs=[block for block, _ in given],
        out_specs=[block for block, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for _, array in outputs],
        interpret=spec.products.interpret,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    )(*(array for _, array in given))


def _rows(width: int) -> int:
    """Of a tile."""
    return _TILE // width


def _forward_kernel(spec: _Spec, stream_ref: Any, *refs: Any) -> None:
    (*added, scale_ref, shift_ref), refs = refs[: 2 + 2 * spec.added], refs[2 + 2 * spec.added :]
    positions, (*sum_ref, normed_ref) = (refs[0][...], refs[1:-1]) if spec.placed else (None, refs)
    scale, shift = scale_ref[...][None], shift_ref[...][None]

    def one(sequence: Array, carry: None) -> None:
        x = stream_ref[sequence].astype(jnp.float32)
        if spec.added:
            added_ref, bias_ref = added
            x = x + added_ref[sequence].astype(jnp.float32) + bias_ref[...][None]
            sum_ref[0][sequence] = x.astype(stream_ref.dtype)
            x = x.astype(stream_ref.dtype).astype(jnp.float32)  # as backward will find it
        normed = tiles.normalise(x)[0] * scale + shift
        normed_ref[sequence] = normed.astype(normed_ref.dtype)
        if spec.placed:
            refs[-1][sequence] = (normed + positions).astype(normed_ref.dtype)

    lax.fori_loop(0, stream_ref.shape[0], one, None)


def _backward_kernel(spec: _Spec, stream_ref: Any, scale_ref: Any, *refs: Any) -> None:
    wanted, (d_x_ref, *sums_refs) = refs[: 1 + 2 * spec.placed], refs[1 + 2 * spec.placed :]
    scale = scale_ref[...][None]

    def one(sequence: Array, sums: list[Array]) -> list[Array]:
        normed, inverse = tiles.normalise(stream_ref[sequence].astype(jnp.float32))
        *d_stream, d_normed = (ref[sequence].astype(jnp.float32) for ref in wanted[:2])
        d_placed = [wanted[2][sequence].astype(jnp.float32)] if spec.placed else []
        gradient = sum(d_placed, d_normed)
        d_x = sum(d_stream, tiles.normalise_backward(gradient * scale, normed, inverse))
        d_x_ref[sequence] = d_x.astype(d_x_ref.dtype)
        here = [gradient * normed, gradient, *[d_x] * spec.added, *d_placed]
        return [so_far + more for so_far, more in zip(sums, here, strict=True)]

    zeros = jnp.zeros(stream_ref.shape[1:], jnp.float32)
    sums = lax.fori_loop(0, stream_ref.shape[0], one, [zeros] * len(sums_refs))
    for index, (ref, found) in enumerate(zip(sums_refs, sums, strict=True)):
        ref[...] = jnp.sum(found, 0) if index < 2 + spec.added else found
