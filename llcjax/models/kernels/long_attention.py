"""Causal attention over long sequences with narrow heads, as two kernels forward and two backward.

With heads of 32, what is done to each score between its two products (an exponential above all) takes longer than the
products. So a program keeps its tile of scores in registers and spends few instructions on each: the scale goes into
the queries once, exponentials are base 2 and one instruction, only tiles on the diagonal are masked, and tiles above it
are never computed. The kernels read and write heads where they lie between the others.

Forward, a program owns a tile of queries and goes through the keys up to the diagonal. It takes no maximum off the
scores, which a softmax needs only against numbers out of range, and leaves the logarithm of each query's normaliser. A
second kernel looks at these, and computes what was out of range again, with a running maximum.

Backward computes the weights from the normalisers: once for the gradients of the queries, going through the keys, and
once for those of keys and values, going through the queries from the diagonal on, with scores transposed as their
products need them. There what is taken off differs from column to column, and is left to the products, as columns more.
Each gradient is added up by the one program that owns it, always in the same order. The method is that of arXiv
2307.08691.

Shape letters: B batch, T tokens, H heads, G heads of queries and of keys, C head width, Q queries and K keys of a tile,
P tiles of queries, S summands of a number.
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
_SUMMANDS = 16
"""Columns that a product goes through at least."""
_LEAST, _MOST = -90.0, 100.0
"""Base-2 logarithms between which a sum of weights has none too large for float32, and those too small do not count."""


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
    """Of the kernels; the defaults are the fastest of those tried on one NVIDIA H200, with heads of 32 in bfloat16."""

    forward: Launch = Launch(queries=64, keys=64, warps=4, stages=3)
    queries: Launch = Launch(queries=64, keys=64, warps=4, stages=3)
    """Of the one for the gradients of the queries."""
    keys: Launch = Launch(queries=64, keys=64, warps=4, stages=3)
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
        products: how products of float32 values are computed, and whether to interpret the kernels; those of bfloat16
            are added up in float32.
        qk_BTGC: queries of all heads, then the keys they are held against, of sizes that `fits` accepts: as one
            product makes them, whose gradients are one product too. Queries with bias and scale are rounded once more.
        v_BTHC: what is mixed, of the dtype of the first, which the result has too.
        bias_HC: of the queries, in float32; none by default.
        launches: how the kernels are cut up.

    Raises:
        ValueError: values in float16, in which the weights of a softmax have no room.
    """
    algorithm = lax.DotAlgorithmPreset.BF16_BF16_F32 if v_BTHC.dtype == jnp.bfloat16 else products.algorithm
    if v_BTHC.dtype == jnp.float16 or algorithm == lax.DotAlgorithmPreset.F16_F16_F32:
        raise ValueError("values and products in float16 have no range for attention; choose bfloat16 or float32.")
    bias_HC = jnp.zeros(v_BTHC.shape[2:]) if bias_HC is None else bias_HC
    return _attention(_Spec(products._replace(algorithm=algorithm), launches), qk_BTGC, v_BTHC, bias_HC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec: _Spec, qk_BTGC: Array, v_BTHC: Array, bias_HC: Array) -> Float[Array, "B T H C"]:
    return _forward(spec, qk_BTGC, v_BTHC, bias_HC)[0]


def _forward(spec: _Spec, qk_BTGC: Array, v_BTHC: Array, bias_HC: Array) -> tuple[Array, Any]:
    """Backward keeps queries with their bias and scale, written in place.

    That is safe because a program reads no queries but those it writes, and no program writes keys.
    """
    launch, (batch, tokens, heads, _) = spec.launches.forward, v_BTHC.shape
    blocks = _Blocks(v_BTHC.shape, launch.queries)
    normaliser_BHT = jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32)
    inputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.bias, bias_HC), (blocks.head, v_BTHC)]
    outputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.tile, v_BTHC), (blocks.tile_numbers, normaliser_BHT)]
    qk_BTGC, mixed_BTHC, normaliser_BHT = _call(
        spec, _forward_kernel, launch, blocks, inputs, outputs, 2, [qk_BTGC, *[v_BTHC] * 3, normaliser_BHT], {0: 0}
    )

    # A program looks at a whole head, since few have anything to do: that is what is stated of it.
    blocks = _Blocks(v_BTHC.shape, tokens)
    outputs = [(blocks.tile, mixed_BTHC), (blocks.tile_numbers, normaliser_BHT)]
    inputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.head, v_BTHC), *outputs]
    mixed_BTHC, normaliser_BHT = _call(
        spec, _again_kernel, launch, blocks, inputs, outputs, 0, [normaliser_BHT], {2: 0, 3: 1}
    )
    return mixed_BTHC, (qk_BTGC, v_BTHC, mixed_BTHC, normaliser_BHT)


def _backward(spec: _Spec, kept: Any, d_mixed_BTHC: Array) -> tuple[Array, Array, Array]:
    d_qk_BTGC, shifts_BHTS, d_bias_BPHC = _gradient_of_queries(spec, kept, d_mixed_BTHC)
    d_qk_BTGC, d_v_BTHC = _gradients_of_keys(spec, kept, d_mixed_BTHC, shifts_BHTS, d_qk_BTGC)
    return d_qk_BTGC, d_v_BTHC, jnp.sum(d_bias_BPHC, (0, 1))


_attention.defvjp(_forward, _backward)


def _gradient_of_queries(spec: _Spec, kept: Any, d_mixed_BTHC: Array) -> list[Array]:
    """Returns d_qk with only its half of queries written, and two more arrays.

    The first, of each query, is what is taken off its scores, and off the gradients of its weights, as `_summands`. The
    second, of each program, is a sum of gradients of its queries, to be added up to that of the bias.
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
    shifts = jax.ShapeDtypeStruct((batch, heads, tokens, _SUMMANDS), qk_BTGC.dtype)
    outputs = [(blocks.tile, qk_BTGC), (blocks.tile_shifts, shifts), (blocks.one_row, sums)]
    moved = [qk_BTGC, *[v_BTHC] * 4, normaliser_BHT, shifts, sums]
    return _call(spec, _queries_kernel, launch, blocks, inputs, outputs, 3, moved)


def _gradients_of_keys(
    spec: _Spec, kept: Any, d_mixed_BTHC: Array, shifts_BHTS: Array, d_qk_BTGC: Array
) -> list[Array]:
    """Returns d_qk with its half of keys written too, in place, and the gradients of the values."""
    qk_BTGC, v_BTHC, _, _ = kept
    launch = spec.launches.keys
    blocks = _Blocks(v_BTHC.shape, launch.keys)
    inputs = [
        (blocks.queries_and_keys, qk_BTGC),
        (blocks.tile, v_BTHC),
        (blocks.head, d_mixed_BTHC),
        (blocks.head_shifts, shifts_BHTS),
        (blocks.key_tile, d_qk_BTGC),
    ]
    outputs = [(blocks.key_tile, qk_BTGC), (blocks.tile, v_BTHC)]
    moved = [qk_BTGC, *[v_BTHC] * 4, shifts_BHTS]
    return _call(spec, _keys_kernel, launch, blocks, inputs, outputs, 4, moved, {4: 0})


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
        self.tile_shifts = pl.BlockSpec(
            (None, None, rows, _SUMMANDS), lambda tile, head, sequence: (sequence, head, tile, 0)
        )
        self.head_shifts = pl.BlockSpec(
            (None, None, tokens, _SUMMANDS), lambda tile, head, sequence: (sequence, head, 0, 0)
        )
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
    moved: list[Any],
    aliases: dict[int, int] | None = None,
) -> list[Array]:
    """Runs a kernel.

    Args:
        spec: what is compiled into it.
        kernel: a program.
        launch: how it is cut up.
        blocks: what a program sees.
        inputs: arrays, and what it sees of each.
        outputs: arrays of their shapes, and what it sees of each.
        num_products: of each score.
        moved: arrays as large as what is read and written; half of one of queries and keys is as large as the values.
        aliases: outputs that are written where an input lies, by its number.
    """
    (_, heads, batch), largest = blocks.grid, max(launch.queries, launch.keys)
    scores = batch * heads * blocks.tokens * (blocks.tokens + largest) // 2
    return pl.pallas_call(
        functools.partial(kernel, spec),
        grid=blocks.grid,
        in_specs=[block for block, _ in inputs],
        out_specs=[block for block, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for _, array in outputs],
        input_output_aliases=aliases or {},
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * scores * blocks.width,
            transcendentals=scores if num_products else 0,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in moved),
        ),
        interpret=spec.products.interpret,
        compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
    )(*(array for _, array in inputs))


def _masked(scores: Array, ahead: Array, query_axis: int) -> Array:
    """Scores without those of later keys, for queries that begin `ahead` of the keys."""
    query = lax.broadcasted_iota(jnp.int32, scores.shape, query_axis) + ahead
    return jnp.where(query >= lax.broadcasted_iota(jnp.int32, scores.shape, 1 - query_axis), scores, _MASKED)


def _through_keys(launch: Launch, first: Array, one: Callable[..., Any], carry: Any) -> Any:
    """Carries on over the tiles of keys that the tile from a `first` query on sees: `one(diagonal, tile, carry)`."""
    diagonal = lax.div(first, launch.keys)
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


def _summands(*numbers: Array) -> Float[Array, "Q S"]:
    """Numbers of each query, as three summands each that bfloat16 and operands in TF32 hold exactly."""
    columns = lax.broadcasted_iota(jnp.int32, (len(numbers[0]), _SUMMANDS), 1)
    found, column = jnp.zeros(columns.shape, jnp.float32), 0
    for rest in numbers:
        for _ in range(3):
            summand = rest.astype(jnp.bfloat16).astype(jnp.float32)
            found = jnp.where(columns == column, summand[:, None], found)
            rest, column = rest - summand, column + 1
    return found


def _adds_up(rows: int, number: int, dtype: Any) -> Float[Array, "K S"]:
    """Rows whose products with `_summands` of queries are that number of each."""
    columns = lax.broadcasted_iota(jnp.int32, (rows, _SUMMANDS), 1)
    return ((columns >= 3 * number) & (columns < 3 * number + 3)).astype(dtype)


def _forward_kernel(
    spec: _Spec, qk_ref: Any, bias_ref: Any, v_ref: Any, scaled_ref: Any, mixed_ref: Any, normaliser_ref: Any
) -> None:
    launch, scale = spec.launches.forward, tiles.LOG2_E / math.sqrt(v_ref.shape[1])
    first, head, key_head = pl.program_id(0) * launch.queries, pl.program_id(1), pl.num_programs(1) + pl.program_id(1)
    own = pl.ds(first, launch.queries)
    q = (scale * (qk_ref[own, head, :].astype(jnp.float32) + bias_ref[...][None])).astype(qk_ref.dtype)
    scaled_ref[own, head, :] = q  # where it was read

    def one(diagonal: bool, tile: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        mixed, total = carry
        at = pl.ds(tile * launch.keys, launch.keys)
        scores = tiles.dot(spec.products, q, qk_ref[at, key_head, :], (1, 1))
        scores = _masked(scores, first - tile * launch.keys, 0) if diagonal else scores
        weights = tiles.exp2(spec.products, scores)
        return mixed + tiles.dot(spec.products, weights.astype(v_ref.dtype), v_ref[at, :]), total + jnp.sum(weights, 1)

    none = jnp.zeros(q.shape, jnp.float32), jnp.zeros(q.shape[:1], jnp.float32)
    mixed, total = _through_keys(launch, first, one, none)
    mixed_ref[...] = (mixed / total[:, None]).astype(mixed_ref.dtype)
    normaliser_ref[...] = jnp.log2(total)


def _again_kernel(
    spec: _Spec, qk_ref: Any, v_ref: Any, mixed_ref: Any, normaliser_ref: Any, new_mixed_ref: Any, new_ref: Any
) -> None:
    """Forward with a running maximum, of the queries whose normalisers are out of range."""
    launch, (tokens, width) = spec.launches.forward, v_ref.shape
    head, key_head = pl.program_id(1), pl.num_programs(1) + pl.program_id(1)

    def in_range(normaliser: Array) -> Array:
        return (normaliser > _LEAST) & (normaliser < _MOST)  # a NaN is not

    def of_queries(number: Array, carry: None) -> None:
        first = number * launch.queries
        own = pl.ds(first, launch.queries)
        q = qk_ref[own, head, :]

        def one(diagonal: bool, tile: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            mixed, largest, total = carry
            at = pl.ds(tile * launch.keys, launch.keys)
            scores = tiles.dot(spec.products, q, qk_ref[at, key_head, :], (1, 1))
            scores = _masked(scores, first - tile * launch.keys, 0) if diagonal else scores
            now = jnp.maximum(largest, jnp.max(scores, 1))
            weights = tiles.exp2(spec.products, scores - now[:, None])
            fade = tiles.exp2(spec.products, largest - now)
            mixed_here = tiles.dot(spec.products, weights.astype(v_ref.dtype), v_ref[at, :])
            return mixed * fade[:, None] + mixed_here, now, total * fade + jnp.sum(weights, 1)

        zeros = jnp.zeros((launch.queries,), jnp.float32)
        none = jnp.zeros((launch.queries, width), jnp.float32), zeros + _MASKED, zeros
        mixed, largest, total = _through_keys(launch, first, one, none)
        # Others keep what they have, so that no later query has a say in it.
        normaliser, mixed = normaliser_ref[own], (mixed / total[:, None]).astype(mixed_ref.dtype)
        new_mixed_ref[own, :] = jnp.where(in_range(normaliser)[:, None], mixed_ref[own, :], mixed)
        new_ref[own] = jnp.where(in_range(normaliser), normaliser, largest + jnp.log2(total))

    # Some at a time, as a kernel loads powers of two only.
    found = [in_range(normaliser_ref[pl.ds(at, _MULTIPLE)]) for at in range(0, tokens, _MULTIPLE)]

    @pl.when(jnp.min(functools.reduce(jnp.logical_and, found).astype(jnp.int32)) == 0)
    def _() -> None:
        lax.fori_loop(0, tokens // launch.queries, of_queries, None)


def _queries_kernel(
    spec: _Spec,
    qk_ref: Any,
    v_ref: Any,
    mixed_ref: Any,
    d_mixed_ref: Any,
    normaliser_ref: Any,
    d_q_ref: Any,
    shifts_ref: Any,
    d_bias_ref: Any,
) -> None:
    launch = spec.launches.queries
    first, head, key_head = pl.program_id(0) * launch.queries, pl.program_id(1), pl.num_programs(1) + pl.program_id(1)
    q = qk_ref[pl.ds(first, launch.queries), head, :]
    d_mixed, normaliser = d_mixed_ref[...], normaliser_ref[...]
    # The softmax takes it off the gradients of the weights.
    along = jnp.sum(mixed_ref[...].astype(jnp.float32) * d_mixed.astype(jnp.float32), 1)
    shifts_ref[...] = _summands(-normaliser, -along).astype(shifts_ref.dtype)

    def one(diagonal: bool, tile: Array, d_q: Array) -> Array:
        at = pl.ds(tile * launch.keys, launch.keys)
        k = qk_ref[at, key_head, :]
        scores = tiles.dot(spec.products, q, k, (1, 1))
        scores = _masked(scores, first - tile * launch.keys, 0) if diagonal else scores
        weights = tiles.exp2(spec.products, scores - normaliser[:, None])
        d_weights = tiles.dot(spec.products, d_mixed, v_ref[at, :], (1, 1))
        d_scores = weights * (d_weights - along[:, None])
        return d_q + tiles.dot(spec.products, d_scores.astype(k.dtype), k)

    d_q = _through_keys(launch, first, one, jnp.zeros(q.shape, jnp.float32)) / math.sqrt(q.shape[1])
    d_q_ref[...] = d_q.astype(d_q_ref.dtype)
    d_bias_ref[...] = jnp.sum(d_q, 0)


def _keys_kernel(
    spec: _Spec, qk_ref: Any, v_ref: Any, d_mixed_ref: Any, shifts_ref: Any, _: Any, d_k_ref: Any, d_v_ref: Any
) -> None:
    launch, v = spec.launches.keys, v_ref[...]
    first, head, key_head = pl.program_id(0) * launch.keys, pl.program_id(1), pl.num_programs(1) + pl.program_id(1)
    k = qk_ref[pl.ds(first, launch.keys), key_head, :]
    take_normaliser, take_along = (_adds_up(launch.keys, number, v.dtype) for number in (0, 1))

    def one(diagonal: bool, tile: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_k, d_v = carry
        at = pl.ds(tile * launch.queries, launch.queries)
        # All products in front of what is done to each score, and loads in the order of the products, which is faster.
        shifts, q = shifts_ref[at, :], qk_ref[at, head, :]
        scores_KQ = tiles.dot(spec.products, k, q, (1, 1))
        d_mixed = d_mixed_ref[at, :]
        d_weights_KQ = tiles.dot(spec.products, v, d_mixed, (1, 1))
        scores_KQ += tiles.dot(spec.products, take_normaliser, shifts, (1, 1))
        d_weights_KQ += tiles.dot(spec.products, take_along, shifts, (1, 1))
        scores_KQ = _masked(scores_KQ, tile * launch.queries - first, 1) if diagonal else scores_KQ
        weights_KQ = tiles.exp2(spec.products, scores_KQ)
        d_scores_KQ = (weights_KQ * d_weights_KQ).astype(k.dtype)
        d_k += tiles.dot(spec.products, d_scores_KQ, q)
        return d_k, d_v + tiles.dot(spec.products, weights_KQ.astype(v.dtype), d_mixed)

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = _through_queries(launch, d_mixed_ref.shape[0], one, (zeros, zeros))
    d_k_ref[...] = (d_k / tiles.LOG2_E).astype(d_k_ref.dtype)  # the queries hold that, and 1 / sqrt(C)
    d_v_ref[...] = d_v.astype(d_v_ref.dtype)
