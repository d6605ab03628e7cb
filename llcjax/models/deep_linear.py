"""Deep linear networks as plain functions: y = x W_1 W_2 ... W_L, without biases.

Parameters are a dictionary {"layer00": W_1, "layer01": W_2, ...} with W_s of shape (H_{s-1}, H_s).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.types import ApplyFn, InitFn, Params, PRNGKey


def deep_linear(widths: Sequence[int]) -> tuple[InitFn, ApplyFn]:
    """Builds the pure functions of a deep linear network.

    Args:
        widths: H_0 (inputs), ..., H_L (outputs).

    Returns:
        `(init, apply)`: `init(key)` draws entries of layer s from N(0, 1 / H_{s-1}); `apply(params, inputs)` maps
        `(batch, H_0)` to `(batch, H_L)`.

    Raises:
        ValueError: fewer than two widths, or a width below 1.

    Example:
        >>> init, apply = deep_linear((2, 3, 1))
        >>> apply(init(jax.random.key(0)), np.ones((4, 2))).shape
        (4, 1)
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths={tuple(widths)} must be at least two numbers (inputs, ..., outputs) from 1 on.")

    def init(key: PRNGKey) -> Params:
        keys = jax.random.split(key, len(widths) - 1)
        return as_params([
            jax.random.normal(key, (before, after)) / np.sqrt(before)
            for key, (before, after) in zip(keys, itertools.pairwise(widths), strict=True)
        ])  # fmt: skip

    return init, apply


def as_params(matrices: Sequence[Array | np.ndarray]) -> Params:
    """Names the matrices W_1, ..., W_L so that sorted names are the order of the layers."""
    return {f"layer{index:02d}": matrix for index, matrix in enumerate(matrices)}


def as_matrices(params: Params) -> list[Array]:
    """W_1, ..., W_L in the order in which they are applied."""
    return [params[name] for name in sorted(params)]


def apply(params: Params, inputs: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
    """Forward pass x W_1 ... W_L.

    Example:
        >>> apply(as_params([2 * np.eye(2), np.ones((2, 1))]), np.ones((1, 2)))
        array([[4.]])
    """
    for matrix in as_matrices(params):
        inputs = inputs @ matrix
    return inputs


def product(params: Params) -> Float[Array, "inputs outputs"]:
    """The linear map W_1 ... W_L of the whole network, multiplied in the cheapest order.

    Example:
        >>> product(as_params([2 * np.eye(2), np.ones((2, 1))]))
        array([[2.],
               [2.]])
    """
    matrices = as_matrices(params)
    if len(matrices) == 1:
        return matrices[0]
    numpy = np if all(isinstance(matrix, np.ndarray) for matrix in matrices) else jnp
    return numpy.linalg.multi_dot(matrices)
