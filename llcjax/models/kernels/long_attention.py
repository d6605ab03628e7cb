"""Causal attention over long sequences with narrow heads, as one kernel forward and two backward.

With heads of 32, what is done to each score between its two products (an exponential above all) takes longer than the
products. So a program keeps its tile of scores in registers and spends few instructions on each: scale and shift of
the softmax are one multiply-add in front of a base-2 exponential of one instruction, only tiles on the diagonal are
masked, and tiles above it are never computed. The kernels read and write heads where they lie between the others.

Forward, a program owns a tile of queries and goes through the keys up to the diagonal, with a running maximum. It
leaves the logarithm of each query's normaliser, from which backward computes the weights again: once for the gradients
of the queries, going through the keys, and once for those of keys and values, going through the queries from the
diagonal on, with scores transposed as their products need them. Each gradient is added up by the one program that owns
it, always in the same order. The method is that of arXiv 2307.08691.

Shape letters: B batch, T tokens, H heads, G heads of queries and of keys, C head width, Q queries and K keys of a tile,
P tiles of queries.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from llcjax.models.kernels import Products, tiles

_MASKED = -1e30
_MULTIPLE = 128
"""Of the tokens: no tile is larger."""
_HALF = {"bfloat16": lax.DotAlgorithmPreset.BF16_BF16_F32, "float16": lax.DotAlgorithmPreset.F16_F16_F32}


class Launch(NamedTuple):
    """How a kernel is cut up; the sizes of tiles are powers of two."""

    queries: int
    """Of a tile."""
    keys: int
    """Of a tile."""
    warps: int
    """Of a program."""
    stages: int
    """2 loads the next tile while the program works on one, 3 the next two."""


class Launches(NamedTuple):
    """Of the three kernels; the defaults are the fastest of 40 on one NVIDIA H200, with heads of 32 in bfloat16."""

    forward: Launch = Launch(queries=64, keys=64, warps=4, stages=3)
    queries: Launch = Launch(queries=64, keys=64, warps=4, stages=3)
    """Of the one for the gradients of the queries."""
    keys: Launch = Launch(queries=32, keys=64, warps=4, stages=3)
    """Of the one for the gradients of keys and values."""


_LAUNCHES = Launches()


class _Spec(NamedTuple):
    """What is compiled into the kernels."""

    products: Products
    launches: Launches


def fits(num_tokens: int, head_width: int) -> bool:
    """Whether the kernels take these sizes: tokens in multiples of 128, heads of 16, 32, 64 or 128.

    Example:
        >>> fits(1024, 32), fits(1000, 32), fits(1024, 48), fits(1024, 8)
        (True, False, False, False)
    """
    return num_tokens > 0 and num_tokens % _MULTIPLE == 0 and head_width in (16, 32, 64, 128)


def long_attention(
    products: Products,
    qk_BTGC: Float[Array, "B T G C"],
    v_BTHC: Float[Array, "B T H C"],
    bias_HC: Float[Array, "H C"] | None = None,
    launches: Launches = _LAUNCHES,
) -> Float[Array, "B T H C"]:
    """Mixes the values of this and earlier tokens: softmax((q + b) k' / sqrt(C)) v, a head at a time.

    Args:
        products: how products of float32 values are computed, and whether to interpret the kernels; products of
            16-bit values are taken as they are, and added up in float32.
        qk_BTGC: queries of all heads, then the keys they are held against, of sizes that `fits` accepts: as one
            product makes them, whose gradients are one product too.
        v_BTHC: what is mixed, of the dtype of the first, which the result has too.
        bias_HC: of the queries, in float32; none by default.
        launches: how the kernels are cut up.
    """
    algorithm = _HALF.get(v_BTHC.dtype.name, products.algorithm)
    bias_HC = jnp.zeros(v_BTHC.shape[2:]) if bias_HC is None else bias_HC
    return _attention(_Spec(products._replace(algorithm=algorithm), launches), qk_BTGC, v_BTHC, bias_HC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec: _Spec, qk_BTGC: Array, v_BTHC: Array, bias_HC: Array) -> Float[Array, "B T H C"]:
    return _forward(spec, qk_BTGC, v_BTHC, bias_HC)[0]


def _forward(spec: _Spec, qk_BTGC: Array, v_BTHC: Array, bias_HC: Array) -> tuple[Array, Any]:
    """Backward keeps queries with their bias, written in place.

    That is safe because a program reads no queries but those it writes, and no program writes keys.
    """
    launch, (batch, tokens, heads, _) = spec.launches.forward, v_BTHC.shape
    blocks = _Blocks(v_BTHC.shape, launch.queries)
    normaliser_BHT = jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32)
    inputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.bias, bias_HC), (blocks.head, v_BTHC)]
    outputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.tile, v_BTHC), (blocks.tile_numbers, normaliser_BHT)]
    qk_BTGC, mixed_BTHC, normaliser_BHT = _call(spec, _forward_kernel, launch, blocks, inputs, outputs, 2, {0: 0})
    return mixed_BTHC, (qk_BTGC, v_BTHC, mixed_BTHC, normaliser_BHT)


def _backward(spec: _Spec, kept: Any, d_mixed_BTHC: Array) -> tuple[Array, Array, Array]:
    d_qk_BTGC, along_BHT, d_bias_BPHC = _gradient_of_queries(spec, kept, d_mixed_BTHC)
    d_qk_BTGC, d_v_BTHC = _gradients_of_keys(spec, kept, d_mixed_BTHC, along_BHT, d_qk_BTGC)
    return d_qk_BTGC, d_v_BTHC, jnp.sum(d_bias_BPHC, (0, 1))


_attention.defvjp(_forward, _backward)


def _gradient_of_queries(spec: _Spec, kept: Any, d_mixed_BTHC: Array) -> list[Array]:
    """Returns d_qk with only its half of queries written, and two more arrays.

    The first, of each query, is what the softmax takes off the gradients of its weights. The second, of each program,
    is a sum of gradients of its queries, to be added up to that of the bias.
    """
    qk_BTGC, v_BTHC, mixed_BTHC, normaliser_BHT = kept
    launch, (batch, tokens, heads, width) = spec.launches.queries, v_BTHC.shape
    blocks = _Blocks(v_BTHC.shape, launch.queries)
    inputs = [
        (blocks.queries_and_keys, qk_BTGC),
        (blocks.head, v_BTHC),
        (blocks.tile, mixed_BTHC),
        (blocks.tile, d_mixed_BTHC),
        (blocks.tile_numbers, normaliser_BHT),
    ]
    sums = jax.ShapeDtypeStruct((batch, tokens // launch.queries, heads, width), jnp.float32)
    outputs = [(blocks.tile, qk_BTGC), (blocks.tile_numbers, normaliser_BHT), (blocks.one_row, sums)]
    return _call(spec, _queries_kernel, launch, blocks, inputs, outputs, 3)


def _gradients_of_keys(spec: _Spec, kept: Any, d_mixed_BTHC: Array, along_BHT: Array, d_qk_BTGC: Array) -> list[Array]:
    """Returns d_qk with its half of keys written too, in place, and the gradients of the values."""
    qk_BTGC, v_BTHC, _, normaliser_BHT = kept
    launch = spec.launches.keys
    blocks = _Blocks(v_BTHC.shape, launch.keys)
    inputs = [
        (blocks.queries_and_keys, qk_BTGC),
        (blocks.tile, v_BTHC),
        (blocks.head, d_mixed_BTHC),
        (blocks.head_numbers, normaliser_BHT),
        (blocks.head_numbers, along_BHT),
        (blocks.key_tile, d_qk_BTGC),
    ]
    outputs = [(blocks.key_tile, qk_BTGC), (blocks.tile, v_BTHC)]
    return _call(spec, _keys_kernel, launch, blocks, inputs, outputs, 4, {5: 0})


class _Blocks:
    """What a program sees of an array: those of a tile of rows of one head of a sequence, or more."""

    def __init__(self, shape: tuple[int, ...], rows: int) -> None:
        batch, tokens, heads, width = shape
        self.tokens, self.width = tokens, width
        # Programs of a sequence run next to each other, so that its keys and values are read from memory once.
        self.grid = tokens // rows, heads, batch
        self.tile = pl.BlockSpec((None, rows, None, width), lambda tile, head, sequence: (sequence, tile, head, 0))
        self.head = pl.BlockSpec((None, tokens, None, width), lambda tile, head, sequence: (sequence, 0, head, 0))
        self.tile_numbers = pl.BlockSpec((None, None, rows), lambda tile, head, sequence: (sequence, head, tile))
        self.head_numbers = pl.BlockSpec((None, None, tokens), lambda tile, head, sequence: (sequence, head, 0))
        self.bias = pl.BlockSpec((None, width), lambda tile, head, sequence: (head, 0))
        self.one_row = pl.BlockSpec((None, None, None, width), lambda tile, head, sequence: (sequence, tile, head, 0))

        # Of keys, which lie after the queries.
        self.key_tile = pl.BlockSpec(
            (None, rows, None, width), lambda tile, head, sequence: (sequence, tile, heads + head, 0)
        )
        # Of both, of all heads: what is written in place can be passed once only.
        self.queries_and_keys = pl.BlockSpec(
            (None, tokens, 2 * heads, width), lambda tile, head, sequence: (sequence, 0, 0, 0)
        )


def _call(
    spec: _Spec,
    kernel: Callable[..., None],
    launch: Launch,
    blocks: _Blocks,
    inputs: list[tuple[pl.BlockSpec, Array]],
    outputs: list[tuple[pl.BlockSpec, Any]],
    num_products: int,
    aliases: dict[int, int] | None = None,
) -> list[Array]:
    """Runs a kernel; an output of `aliases` is written where its input lies."""
    (_, heads, batch), largest = blocks.grid, max(launch.queries, launch.keys)
    scores = batch * heads * blocks.tokens * (blocks.tokens + largest) // 2
    arrays = [array for _, array in (*inputs, *outputs)]
    return pl.pallas_call(
        functools.partial(kernel, spec),
        grid=blocks.grid,
        in_specs=[block for block, _ in inputs],
        out_specs=[block for block, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for _, array in outputs],
        input_output_aliases=aliases or {},
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * scores * blocks.width,
            transcendentals=scores,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in arrays),
        ),
        interpret=spec.products.interpret,
        compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
    )(*(array for _, array in inputs))


def _scale(head_width: int) -> float:
    """Of scores in front of a base-2 exponential."""
    return tiles.LOG2_E / math.sqrt(head_width)


def _masked(scores: Array, ahead: Array, query_axis: int) -> Array:
    """Scores without those of later keys, for queries that begin `ahead` of the keys."""
    query = lax.broadcasted_iota(jnp.int32, scores.shape, query_axis) + ahead
    return jnp.where(query >= lax.broadcasted_iota(jnp.int32, scores.shape, 1 - query_axis), scores, _MASKED)


def _through_keys(launch: Launch, one: Callable[..., Any], carry: Any) -> Any:
    """Carries on over the tiles of keys that a tile of queries sees: `one(diagonal, tile, carry)`."""
    diagonal = lax.div(pl.program_id(0) * launch.queries, launch.keys)
    carry = lax.fori_loop(0, diagonal, functools.partial(one, False), carry)
    for tile in range(max(1, launch.queries // launch.keys)):
        carry = one(True, diagonal + tile, carry)
    return carry


def _through_queries(launch: Launch, tokens: int, one: Callable[..., Any], carry: Any) -> Any:
    """Carries on over the tiles of queries that see a tile of keys."""
    diagonal, tiles_on_it = (
        lax.div(pl.program_id(0) * launch.keys, launch.queries),
        max(1, launch.keys // launch.queries),
    )
    for tile in range(tiles_on_it):
        carry = one(True, diagonal + tile, carry)
    return lax.fori_loop(diagonal + tiles_on_it, tokens // launch.queries, functools.partial(one, False), carry)


def _forward_kernel(
    spec: _Spec, qk_ref: Any, bias_ref: Any, v_ref: Any, biased_ref: Any, mixed_ref: Any, normaliser_ref: Any
) -> None:
    launch, scale = spec.launches.forward, _scale(v_ref.shape[1])
    first, head, key_head = pl.program_id(0) * launch.queries, pl.program_id(1), pl.num_programs(1) + pl.program_id(1)
    own = pl.ds(first, launch.queries)
    q = (qk_ref[own, head, :].astype(jnp.float32) + bias_ref[...][None]).astype(qk_ref.dtype)
    biased_ref[own, head, :] = q  # where it was read

    def one(diagonal: bool, tile: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed, largest, total = carry
        at = pl.ds(tile * launch.keys, launch.keys)
        scores = tiles.dot(spec.products, q, qk_ref[at, key_head, :], (1, 1))
        scores = _masked(scores, first - tile * launch.keys, 0) if diagonal else scores
        now = jnp.maximum(largest, jnp.max(scores, 1))
        weights = tiles.scaled_exp2(spec.products, scores, scale, (-now * scale)[:, None])
        fade = tiles.exp2(spec.products, (largest - now) * scale)
        mixed_here = tiles.dot(spec.products, weights.astype(v_ref.dtype), v_ref[at, :])
        return mixed * fade[:, None] + mixed_here, now, total * fade + jnp.sum(weights, 1)

    zeros = jnp.zeros(q.shape[:1], jnp.float32)
    mixed, largest, total = _through_keys(launch, one, (jnp.zeros(q.shape, jnp.float32), zeros + _MASKED, zeros))
    mixed_ref[...] = (mixed / total[:, None]).astype(mixed_ref.dtype)
    normaliser_ref[...] = largest * scale + jnp.log2(total)


def _queries_kernel(
    spec: _Spec,
    qk_ref: Any,
    v_ref: Any,
    mixed_ref: Any,
    d_mixed_ref: Any,
    normaliser_ref: Any,
    d_q_ref: Any,
    along_ref: Any,
    d_bias_ref: Any,
) -> None:
    launch, scale = spec.launches.queries, _scale(v_ref.shape[1])
    first, head, key_head = pl.program_id(0) * launch.queries, pl.program_id(1), pl.num_programs(1) + pl.program_id(1)
    q = qk_ref[pl.ds(first, launch.queries), head, :]
    d_mixed, normaliser = d_mixed_ref[...], normaliser_ref[...]
    along = jnp.sum(mixed_ref[...].astype(jnp.float32) * d_mixed.astype(jnp.float32), 1)
    along_ref[...] = along

    def one(diagonal: bool, tile: Array, d_q: Array) -> Array:
        at = pl.ds(tile * launch.keys, launch.keys)
        k = qk_ref[at, key_head, :]
        scores = tiles.dot(spec.products, q, k, (1, 1))
        scores = _masked(scores, first - tile * launch.keys, 0) if diagonal else scores
        weights = tiles.scaled_exp2(spec.products, scores, scale, -normaliser[:, None])
        d_weights = tiles.dot(spec.products, d_mixed, v_ref[at, :], (1, 1))
        d_scores = weights * (d_weights - along[:, None])
        return d_q + tiles.dot(spec.products, d_scores.astype(k.dtype), k)

    d_q = _through_keys(launch, one, jnp.zeros(q.shape, jnp.float32)) / math.sqrt(q.shape[1])
    d_q_ref[...] = d_q.astype(d_q_ref.dtype)
    d_bias_ref[...] = jnp.sum(d_q, 0)


def _keys_kernel(
    spec: _Spec,
    qk_ref: Any,
    v_ref: Any,
    d_mixed_ref: Any,
    normaliser_ref: Any,
    along_ref: Any,
    _: Any,
    d_k_ref: Any,
    d_v_ref: Any,
) -> None:
    launch, v, scale = spec.launches.keys, v_ref[...], _scale(v_ref.shape[1])
    first, head, key_head = pl.program_id(0) * launch.keys, pl.program_id(1), pl.num_programs(1) + pl.program_id(1)
    k = qk_ref[pl.ds(first, launch.keys), key_head, :]

    def one(diagonal: bool, tile: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_k, d_v = carry
        at = pl.ds(tile * launch.queries, launch.queries)
        q, d_mixed = qk_ref[at, head, :], d_mixed_ref[at, :]
        scores_KQ = tiles.dot(spec.products, k, q, (1, 1))
        scores_KQ = _masked(scores_KQ, tile * launch.queries - first, 1) if diagonal else scores_KQ
        weights_KQ = tiles.scaled_exp2(spec.products, scores_KQ, scale, -normaliser_ref[at][None])
        d_v += tiles.dot(spec.products, weights_KQ.astype(v.dtype), d_mixed)
        d_weights_KQ = tiles.dot(spec.products, v, d_mixed, (1, 1))
        d_scores_KQ = weights_KQ * (d_weights_KQ - along_ref[at][None])
        return d_k + tiles.dot(spec.products, d_scores_KQ.astype(k.dtype), q), d_v

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = _through_queries(launch, d_mixed_ref.shape[0], one, (zeros, zeros))
    d_k_ref[...] = (d_k / math.sqrt(k.shape[1])).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v.astype(d_v_ref.dtype)
