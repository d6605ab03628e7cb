"""Causal attention over long sequences with narrow heads, as two kernels forward and two backward.

With heads of 32, what is done to each score between its two products (an exponential above all) takes longer than the
products. So a program keeps its tile of scores in registers and spends few instructions on each: the scale goes into
the queries once, exponentials are base 2 and one instruction, only tiles on the diagonal are masked, and tiles above it
are never computed. The kernels read and write heads where they lie between the others.

What the programs do, and why, stands in `long_attention_programs.py`.

Shape letters: B batch, T tokens, H heads, G heads of queries and of keys, C head width, P tiles of queries, S summands
of a number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from llcjax.models.kernels import Products
from llcjax.models.kernels import long_attention_programs as programs
from llcjax.models.kernels.long_attention_programs import MULTIPLE, SUMMANDS, Launch, Launches, Spec

_LAUNCHES = Launches()


def fits(num_tokens: int, head_width: int) -> bool:
    """Whether the kernels take these sizes: tokens in multiples of 128, heads of 16, 32, 64 or 128.

    Example:
        >>> fits(1024, 32), fits(1000, 32), fits(1024, 48), fits(1024, 8)
        (True, False, False, False)
    """
    return num_tokens > 0 and num_tokens % MULTIPLE == 0 and head_width in (16, 32, 64, 128)


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
    return _attention(Spec(products._replace(algorithm=algorithm), launches), qk_BTGC, v_BTHC, bias_HC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec: Spec, qk_BTGC: Array, v_BTHC: Array, bias_HC: Array) -> Float[Array, "B T H C"]:
    return _forward(spec, qk_BTGC, v_BTHC, bias_HC)[0]


def _forward(spec: Spec, qk_BTGC: Array, v_BTHC: Array, bias_HC: Array) -> tuple[Array, Any]:
    """Backward keeps queries with their bias and scale, written in place.

    That is safe because a program reads no queries but those it writes, and no program writes keys.
    """
    launch, (batch, tokens, heads, _) = spec.launches.forward, v_BTHC.shape
    blocks = _Blocks(v_BTHC.shape, launch.queries)
    normaliser_BHT = jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32)
    inputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.bias, bias_HC), (blocks.head, v_BTHC)]
    outputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.tile, v_BTHC), (blocks.tile_numbers, normaliser_BHT)]
    qk_BTGC, mixed_BTHC, normaliser_BHT = _call(
        spec,
        programs.forward_kernel,
        launch,
        blocks,
        inputs,
        outputs,
        2,
        [qk_BTGC, *[v_BTHC] * 3, normaliser_BHT],
        {0: 0},
    )

    # A program looks at a whole head, since few have anything to do: that is what is stated of it.
    blocks = _Blocks(v_BTHC.shape, tokens)
    outputs = [(blocks.tile, mixed_BTHC), (blocks.tile_numbers, normaliser_BHT)]
    inputs = [(blocks.queries_and_keys, qk_BTGC), (blocks.head, v_BTHC), *outputs]
    mixed_BTHC, normaliser_BHT = _call(
        spec, programs.again_kernel, launch, blocks, inputs, outputs, 0, [normaliser_BHT], {2: 0, 3: 1}
    )
    return mixed_BTHC, (qk_BTGC, v_BTHC, mixed_BTHC, normaliser_BHT)


def _backward(spec: Spec, kept: Any, d_mixed_BTHC: Array) -> tuple[Array, Array, Array]:
    d_qk_BTGC, shifts_BHTS, d_bias_BPHC = _gradient_of_queries(spec, kept, d_mixed_BTHC)
    d_qk_BTGC, d_v_BTHC = _gradients_of_keys(spec, kept, d_mixed_BTHC, shifts_BHTS, d_qk_BTGC)
    return d_qk_BTGC, d_v_BTHC, jnp.sum(d_bias_BPHC, (0, 1))


_attention.defvjp(_forward, _backward)


def _gradient_of_queries(spec: Spec, kept: Any, d_mixed_BTHC: Array) -> list[Array]:
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
    shifts = jax.ShapeDtypeStruct((batch, heads, tokens, SUMMANDS), qk_BTGC.dtype)
    outputs = [(blocks.tile, qk_BTGC), (blocks.tile_shifts, shifts), (blocks.one_row, sums)]
    moved = [qk_BTGC, *[v_BTHC] * 4, normaliser_BHT, shifts, sums]
    return _call(spec, programs.queries_kernel, launch, blocks, inputs, outputs, 3, moved)


def _gradients_of_keys(spec: Spec, kept: Any, d_mixed_BTHC: Array, shifts_BHTS: Array, d_qk_BTGC: Array) -> list[Array]:
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
    return _call(spec, programs.keys_kernel, launch, blocks, inputs, outputs, 4, moved, {4: 0})


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
            (None, None, rows, SUMMANDS), lambda tile, head, sequence: (sequence, head, tile, 0)
        )
        self.head_shifts = pl.BlockSpec(
            (None, None, tokens, SUMMANDS), lambda tile, head, sequence: (sequence, head, 0, 0)
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
    spec: Spec,
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
