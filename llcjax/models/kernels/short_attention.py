"""Causal attention over short sequences as one kernel a direction, for sequences that are far shorter than a tile.

With 16 tokens a sequence, the scores of a head are thousands of 16 x 16 products: too small for a matrix library, and
each is written and read several times around the softmax. Here a program takes one head of a tile of whole sequences
through scores, softmax and mixing in registers, reads queries, keys and values once and writes the mixed values once;
backward computes the weights again instead of storing them.

Scores are one product a tile, between all of its rows; those of other sequences and of later tokens are masked. A
program is one warp, which needs no barriers, and loads the next tile while it works on one.

Shape letters: B batch, T tokens, E three times the model width, D model width, C head width, R rows of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from llcjax.models.kernels import Products, tiles

_MASKED = -1e30
_LAUNCH = tiles.Launch(rows=16, warps=1, tiles=8, stages=2)
_LEAST = 16
"""Smallest side of a product on tensor cores."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What is compiled into the kernels."""

    num_tokens: int
    num_heads: int
    products: Products

    @property
    def launch(self) -> tiles.Launch:
        """Whole sequences a tile."""
        return _LAUNCH._replace(rows=max(_LAUNCH.rows, self.num_tokens))


def fits(num_tokens: int, head_width: int) -> bool:
    """Whether the kernels take these sizes: powers of two, products of at least 16, sequences of at most 64.

    Example:
        >>> fits(16, 16), fits(18, 16), fits(16, 8), fits(128, 16)
        (True, False, False, False)
    """
    powers = all(size & (size - 1) == 0 for size in (num_tokens, head_width))
    return powers and head_width >= _LEAST and num_tokens <= 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def short_attention(spec: AttentionSpec, qkv_BTE: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
    """Mixes the values of earlier tokens: softmax(q k' / sqrt(C)) v, a head at a time.

    Args:
        spec: sizes that `fits` accepts.
        qkv_BTE: queries, keys and values of the first head, then of the second, and so on; their dtype is that of the
            result, whereas scores and softmax are float32.
    """
    return _forward(spec, qkv_BTE)[0]


def _forward(spec: AttentionSpec, qkv_BTE: Array) -> tuple[Array, Array]:
    (mixed,) = _call(spec, _forward_kernel, [qkv_BTE], [1])
    return mixed, qkv_BTE


def _backward(spec: AttentionSpec, qkv_BTE: Array, d_mixed_BTD: Array) -> tuple[Array]:
    (d_qkv,) = _call(spec, _backward_kernel, [qkv_BTE, d_mixed_BTD], [3])
    return (d_qkv,)


short_attention.defvjp(_forward, _backward)


def _call(
    spec: AttentionSpec, kernel: Callable[..., None], inputs: list[Array], outputs: list[int]
) -> list[Float[Array, "B T _"]]:
    """Runs a kernel over all tiles and heads; outputs are as many head widths wide a head as they say."""
    batch, tokens = inputs[0].shape[:2]
    launch = spec.launch
    head_width = inputs[0].shape[2] // (3 * spec.num_heads)
    per_program = launch.program_rows(batch * tokens)
    # Rows of zeros, whose gradient is not used, fill the last tile.
    flat = [tiles.padded(array.reshape(batch * tokens, -1), per_program) for array in inputs]
    rows = len(flat[0])

    def block(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((per_program, width), lambda program, head: (program, head))

    found = pl.pallas_call(
        functools.partial(kernel, spec, head_width),
        grid=(rows // per_program, spec.num_heads),
        in_specs=[block(array.shape[1] // spec.num_heads) for array in flat],
        out_specs=[block(widths * head_width) for widths in outputs],
        out_shape=[
            jax.ShapeDtypeStruct((rows, spec.num_heads * widths * head_width), inputs[0].dtype) for widths in outputs
        ],
        interpret=spec.products.interpret,
        compiler_params=launch.compiler_params,
    )(*flat)
    return [array[: batch * tokens].reshape(batch, tokens, -1) for array in found]


def _parts(head_width: int) -> list[Any]:
    """Columns of the queries, keys and values of a head."""
    return [pl.ds(part * head_width, head_width) for part in range(3)]


def _weights(spec: AttentionSpec, q: Array, k: Array) -> Float[Array, "R R"]:
    """Attention weights of all rows of a tile; 0 between sequences and for later tokens."""
    row = lax.broadcasted_iota(jnp.int32, (spec.launch.rows, spec.launch.rows), 0)
    seen = lax.broadcasted_iota(jnp.int32, (spec.launch.rows, spec.launch.rows), 1)
    visible = (row // spec.num_tokens == seen // spec.num_tokens) & (seen <= row)
    scores = jnp.where(visible, tiles.dot(spec.products, q, k, (1, 1)) / math.sqrt(q.shape[1]), _MASKED)
    unnormalised = jnp.exp(scores - jnp.max(scores, 1, keepdims=True))
    return unnormalised / jnp.sum(unnormalised, 1, keepdims=True)


def _forward_kernel(spec: AttentionSpec, head_width: int, qkv_ref: Any, mixed_ref: Any) -> None:
    def one(at: Any) -> None:
        q, k, v = (qkv_ref[at, part] for part in _parts(head_width))
        mixed_ref[at, :] = tiles.dot(spec.products, _weights(spec, q, k), v).astype(mixed_ref.dtype)

    tiles.for_each(spec.launch.rows, qkv_ref, one)


def _backward_kernel(spec: AttentionSpec, head_width: int, qkv_ref: Any, d_mixed_ref: Any, d_qkv_ref: Any) -> None:
    def one(at: Any) -> None:
        parts = _parts(head_width)
        q, k, v = (qkv_ref[at, part] for part in parts)
        d_mixed = d_mixed_ref[at, :]
        weights = _weights(spec, q, k)
        d_weights = tiles.dot(spec.products, d_mixed, v, (1, 1))
        along = jnp.sum(d_weights * weights, 1, keepdims=True)
        d_scores = weights * (d_weights - along) / math.sqrt(head_width)
        gradients = (
            tiles.dot(spec.products, d_scores, k),
            tiles.dot(spec.products, d_scores, q, (0, 0)),
            tiles.dot(spec.products, weights, d_mixed, (0, 0)),
        )
        for part, gradient in zip(parts, gradients, strict=True):
            d_qkv_ref[at, part] = gradient.astype(d_qkv_ref.dtype)

    tiles.for_each(spec.launch.rows, qkv_ref, one)
