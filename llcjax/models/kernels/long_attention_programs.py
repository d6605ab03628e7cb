"""What the programs of attention over long sequences do (`long_attention.py` runs them).

Forward, a program owns a tile of queries and goes through the keys up to the diagonal. It takes no maximum off the
scores, which a softmax needs only against numbers out of range, and leaves the logarithm of each query's normaliser. A
second kernel looks at these, and computes what was out of range again, with a running maximum.

Backward computes the weights from the normalisers: once for the gradients of the queries, going through the keys, and
once for those of keys and values, going through the queries from the diagonal on, with scores transposed as their
products need them. There what is taken off differs from column to column, and is left to the products, as columns more.
Each gradient is added up by the one program that owns it, always in the same order. The method is that of arXiv
2307.08691.

Shape letters: T tokens, H heads, C head width, Q queries and K keys of a tile, S summands of a number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from llcjax.models.kernels import Products, tiles

_MASKED = -1e30
MULTIPLE = 128
"""Of the tokens: no tile is larger."""
SUMMANDS = 16
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


class Spec(NamedTuple):
    """What is compiled into the kernels."""

    products: Products
    launches: Launches


def _place(rows: int) -> tuple[Array, Array, Array]:
    """The first row of a program, its head, and where the keys of that lie among queries and keys."""
    return pl.program_id(0) * rows, pl.program_id(1), pl.num_programs(1) + pl.program_id(1)


def _masked(scores: Array, ahead: Array, query_axis: int) -> Array:
    """Scores without those of later keys, for queries that begin `ahead` of the keys."""
    query = lax.broadcasted_iota(jnp.int32, scores.shape, query_axis) + ahead
    return jnp.where(query >= lax.broadcasted_iota(jnp.int32, scores.shape, 1 - query_axis), scores, _MASKED)


def _scores(spec: Spec, q: Array, k: Array, ahead: Array | None) -> Float[Array, "Q K"]:
    """Of a tile, masked on the diagonal, where queries begin `ahead` of the keys."""
    scores = tiles.dot(spec.products, q, k, (1, 1))
    return scores if ahead is None else _masked(scores, ahead, 0)


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
    columns = lax.broadcasted_iota(jnp.int32, (len(numbers[0]), SUMMANDS), 1)
    found, column = jnp.zeros(columns.shape, jnp.float32), 0
    for rest in numbers:
        for _ in range(3):
            summand = rest.astype(jnp.bfloat16).astype(jnp.float32)
            found = jnp.where(columns == column, summand[:, None], found)
            rest, column = rest - summand, column + 1
    return found


def _adds_up(rows: int, number: int, dtype: Any) -> Float[Array, "K S"]:
    """Rows whose products with `_summands` of queries are that number of each."""
    columns = lax.broadcasted_iota(jnp.int32, (rows, SUMMANDS), 1)
    return ((columns >= 3 * number) & (columns < 3 * number + 3)).astype(dtype)


def forward_kernel(
    spec: Spec, qk_ref: Any, bias_ref: Any, v_ref: Any, scaled_ref: Any, mixed_ref: Any, normaliser_ref: Any
) -> None:
    """Mixes the values for a tile of queries, which it leaves with bias and scale, and their normalisers."""
    launch, scale = spec.launches.forward, tiles.LOG2_E / math.sqrt(v_ref.shape[1])
    first, head, key_head = _place(launch.queries)
    own = pl.ds(first, launch.queries)
    q = (scale * (qk_ref[own, head, :].astype(jnp.float32) + bias_ref[...][None])).astype(qk_ref.dtype)
    scaled_ref[own, head, :] = q  # where it was read

    def one(diagonal: bool, tile: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        mixed, total = carry
        at = pl.ds(tile * launch.keys, launch.keys)
        scores = _scores(spec, q, qk_ref[at, key_head, :], first - tile * launch.keys if diagonal else None)
        weights = tiles.exp2(spec.products, scores)
        return mixed + tiles.dot(spec.products, weights.astype(v_ref.dtype), v_ref[at, :]), total + jnp.sum(weights, 1)

    none = jnp.zeros(q.shape, jnp.float32), jnp.zeros(q.shape[:1], jnp.float32)
    mixed, total = _through_keys(launch, first, one, none)
    mixed_ref[...] = (mixed / total[:, None]).astype(mixed_ref.dtype)
    normaliser_ref[...] = jnp.log2(total)


def again_kernel(
    spec: Spec, qk_ref: Any, v_ref: Any, mixed_ref: Any, normaliser_ref: Any, new_mixed_ref: Any, new_ref: Any
) -> None:
    """Forward with a running maximum, of the queries whose normalisers are out of range."""
    launch, (tokens, width) = spec.launches.forward, v_ref.shape
    _, head, key_head = _place(tokens)

    def in_range(normaliser: Array) -> Array:
        return (normaliser > _LEAST) & (normaliser < _MOST)  # a NaN is not

    def of_queries(number: Array, carry: None) -> None:
        first = number * launch.queries
        own = pl.ds(first, launch.queries)
        q = qk_ref[own, head, :]

        def one(diagonal: bool, tile: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            mixed, largest, total = carry
            at = pl.ds(tile * launch.keys, launch.keys)
            scores = _scores(spec, q, qk_ref[at, key_head, :], first - tile * launch.keys if diagonal else None)
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
    found = [in_range(normaliser_ref[pl.ds(at, MULTIPLE)]) for at in range(0, tokens, MULTIPLE)]

    @pl.when(jnp.min(functools.reduce(jnp.logical_and, found).astype(jnp.int32)) == 0)
    def _() -> None:
        lax.fori_loop(0, tokens // launch.queries, of_queries, None)


def queries_kernel(
    spec: Spec,
    qk_ref: Any,
    v_ref: Any,
    mixed_ref: Any,
    d_mixed_ref: Any,
    normaliser_ref: Any,
    d_q_ref: Any,
    shifts_ref: Any,
    d_bias_ref: Any,
) -> None:
    """Gradient of a tile of queries, and of their bias; leaves what is taken off their scores elsewhere."""
    launch = spec.launches.queries
    first, head, key_head = _place(launch.queries)
    q = qk_ref[pl.ds(first, launch.queries), head, :]
    d_mixed, normaliser = d_mixed_ref[...], normaliser_ref[...]
    # The softmax takes it off the gradients of the weights.
    along = jnp.sum(mixed_ref[...].astype(jnp.float32) * d_mixed.astype(jnp.float32), 1)
    shifts_ref[...] = _summands(-normaliser, -along).astype(shifts_ref.dtype)

    def one(diagonal: bool, tile: Array, d_q: Array) -> Array:
        at = pl.ds(tile * launch.keys, launch.keys)
        k = qk_ref[at, key_head, :]
        scores = _scores(spec, q, k, first - tile * launch.keys if diagonal else None)
        weights = tiles.exp2(spec.products, scores - normaliser[:, None])
        d_weights = tiles.dot(spec.products, d_mixed, v_ref[at, :], (1, 1))
        d_scores = weights * (d_weights - along[:, None])
        return d_q + tiles.dot(spec.products, d_scores.astype(k.dtype), k)

    d_q = _through_keys(launch, first, one, jnp.zeros(q.shape, jnp.float32)) / math.sqrt(q.shape[1])
    d_q_ref[...] = d_q.astype(d_q_ref.dtype)
    d_bias_ref[...] = jnp.sum(d_q, 0)


def keys_kernel(
    spec: Spec, qk_ref: Any, v_ref: Any, d_mixed_ref: Any, shifts_ref: Any, _: Any, d_k_ref: Any, d_v_ref: Any
) -> None:
    """Gradients of a tile of keys and of the values there."""
    launch, v = spec.launches.keys, v_ref[...]
    first, head, key_head = _place(launch.keys)
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
