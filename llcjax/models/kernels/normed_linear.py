"""Norm and linear map as one kernel a direction: n(x) W + b, with n(x) = (x - mean) / standard deviation.

Plain jax writes the normalised rows and reads them in three products. Here they are computed where they are needed, and
the residual stream passes through, so that backward adds its gradient in the same pass.

Shape letters: N rows (batch x token), R rows of a tile, D model width, E width of the result, P programs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from llcjax.models.kernels import Products, tiles

_FORWARD = tiles.Launch(rows=64, warps=4, tiles=16, stages=2)
_BACKWARD = tiles.Launch(rows=32, warps=4, tiles=128, stages=2)
_BACKWARD_HALF = tiles.Launch(rows=64, warps=4, tiles=64, stages=3)
_FEW_COLUMNS = tiles.Launch(rows=32, warps=1, tiles=32, stages=3)  # of a matrix narrower than the rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinearSpec:
    """What is compiled into the kernels."""

    products: Products
    layer_norm: bool
    through: bool = True
    """Whether the rows pass through, to be added to what comes after."""
    result: Literal["float32"] | None = None
    """Dtype of the map; None takes that of the rows."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normed_linear(
    spec: LinearSpec, x_ND: Float[Array, "N D"], weight_DE: Float[Array, "D E"], bias_E: Float[Array, " E"]
) -> tuple[Float[Array, "N E"], Float[Array, "N D"]] | tuple[Float[Array, "N E"]]:
    """The map of the normalised rows, and the rows themselves where something adds to them.

    Args:
        spec: options.
        x_ND: rows; their dtype is that of the results.
        weight_DE: float32 matrix, the norm's scale folded into it, which is rounded to the dtype of the rows; E is a
            multiple of D, or a power of two below it. Its gradient is float32: as a sum over all rows it may lie beyond
            the range of float16.
        bias_E: the norm's shift, mapped.
    """
    return _forward(spec, x_ND, weight_DE, bias_E)[0]


def _forward(spec: LinearSpec, x_ND: Array, weight_DE: Array, bias_E: Array) -> tuple[Any, Any]:
    launch, weight_DE = _launch(_FORWARD, weight_DE), weight_DE.astype(x_ND.dtype)
    per_program = launch.program_rows(len(x_ND))
    x, (width, wide) = tiles.padded(x_ND, per_program), weight_DE.shape
    mapped = pl.pallas_call(
        functools.partial(_forward_kernel, spec, launch.rows),
        grid=(len(x) // per_program,),
        in_specs=[tiles.rows_of_program(per_program, width), *tiles.same_for_all(weight_DE, bias_E)],
        out_specs=tiles.rows_of_program(per_program, wide),
        out_shape=jax.ShapeDtypeStruct((len(x), wide), spec.result or x.dtype),
        interpret=spec.products.interpret,
        compiler_params=launch.compiler_params,
    )(x, weight_DE, bias_E)
    mapped = mapped[: len(x_ND)]
    return (mapped, x_ND) if spec.through else (mapped,), (x_ND, weight_DE)


def _backward(spec: LinearSpec, kept: Any, gradients: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    x_ND, weight_DE = kept
    launch = _launch(_BACKWARD_HALF if tiles.is_half(x_ND.dtype) else _BACKWARD, weight_DE)
    per_program = launch.program_rows(len(x_ND))
    x, *padded = (tiles.padded(array, per_program) for array in (x_ND, *gradients))
    (width, wide), programs = weight_DE.shape, len(x) // per_program
    narrow, broad = (tiles.rows_of_program(per_program, size) for size in (width, wide))
    shapes = [(size, wide) for size in (width, 16)]
    dx, weight, bias = pl.pallas_call(
        functools.partial(_backward_kernel, spec, launch.rows),
        grid=(programs,),
        in_specs=[narrow, broad, *([narrow] if spec.through else []), *tiles.same_for_all(weight_DE)],
        out_specs=[narrow, *(tiles.matrix_of_program(*shape) for shape in shapes)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(jax.ShapeDtypeStruct((programs, *shape), jnp.float32) for shape in shapes),
        ],
        interpret=spec.products.interpret,
        compiler_params=launch.compiler_params,
    )(x, *padded, weight_DE)
    return dx[: len(x_ND)], jnp.sum(weight, 0), jnp.sum(bias, 0)[0]


normed_linear.defvjp(_forward, _backward)


def _launch(usual: tiles.Launch, weight_DE: Array) -> tiles.Launch:
    return _FEW_COLUMNS if weight_DE.shape[1] < weight_DE.shape[0] else usual


def _columns(width: int, wide: int) -> list[Any]:
    """The result in parts at most as wide as the rows: sizes in a kernel are powers of two."""
    return [pl.ds(start, min(width, wide)) for start in range(0, wide, width)]


def _normed(spec: LinearSpec, x: Array) -> tuple[Array, Array | None]:
    return tiles.normalise(x.astype(jnp.float32)) if spec.layer_norm else (x.astype(jnp.float32), None)


def _forward_kernel(spec: LinearSpec, rows: int, x_ref: Any, weight_ref: Any, bias_ref: Any, mapped_ref: Any) -> None:
    parts = _columns(*weight_ref.shape)
    weights = [(weight_ref[:, part], bias_ref[part][None, :]) for part in parts]

    def one(at: Any) -> None:
        normed, _ = _normed(spec, x_ref[at, :])
        for part, (weight, bias) in zip(parts, weights, strict=True):
            mapped_ref[at, part] = (tiles.dot(spec.products, normed, weight) + bias).astype(mapped_ref.dtype)

    tiles.for_each(rows, x_ref, one)


def _backward_kernel(spec: LinearSpec, rows: int, x_ref: Any, d_mapped_ref: Any, *refs: Any) -> None:
    *d_through_refs, weight_ref, dx_ref, d_weight_ref, d_bias_ref = refs
    product = functools.partial(tiles.dot, spec.products)
    width, wide = weight_ref.shape
    parts = _columns(width, wide)
    weights = [weight_ref[:, part] for part in parts]
    ones = tiles.row_of_ones(rows)

    def one(tile: Array, sums: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
        at = pl.ds(tile * rows, rows)
        normed, inverse = _normed(spec, x_ref[at, :])
        d_normed, found = jnp.zeros((rows, width), jnp.float32), []
        for part, weight, (d_weight, d_bias) in zip(parts, weights, sums, strict=True):
            d_mapped = d_mapped_ref[at, part]
            d_normed += product(d_mapped, weight, (1, 1))
            found.append((d_weight + product(normed, d_mapped, (0, 0)), d_bias + product(ones, d_mapped)))
        dx = tiles.normalise_backward(d_normed, normed, inverse) if inverse is not None else d_normed
        for d_through_ref in d_through_refs:
            dx = dx + d_through_ref[at, :].astype(jnp.float32)
        dx_ref[at, :] = dx.astype(dx_ref.dtype)
        return found

    start = [(jnp.zeros((width, part.size), jnp.float32), jnp.zeros((16, part.size), jnp.float32)) for part in parts]
    totals = lax.fori_loop(0, x_ref.shape[0] // rows, one, start)
    for part, (d_weight, d_bias) in zip(parts, totals, strict=True):
        d_weight_ref[:, part] = d_weight
        d_bias_ref[:, part] = d_bias
