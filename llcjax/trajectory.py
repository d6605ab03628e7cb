"""Development as a path: principal components of what a model computes over its checkpoints, and their geometry.

Essential dynamics (arXiv 2402.02364 v1, section 3.2 and its code): PCA of outputs on fixed inputs over checkpoints,
smoothed, with osculating circles; the same PCA of hidden activations; linear CKA (arXiv 1905.00414, equation 5) between
successive checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from llcjax.checkpoints import CheckpointBank
from llcjax.types import Params

LAST_WIDTH = 50 / 190
"""The paper's last smoothing width, 50 checkpoints, as a share of its 190."""


class Components(NamedTuple):
    """Principal components of a path."""

    scores: Float[np.ndarray, "checkpoint component"]
    explained: Float[np.ndarray, " component"]
    """Share of the variance."""


class Geometry(NamedTuple):
    """Osculating circles of a plane curve."""

    curvature: Float[np.ndarray, " checkpoint"]
    """Signed, one over the radius."""
    centers: Float[np.ndarray, "checkpoint 2"]
    """Centres of the circles: the evolute."""
    vertices: np.ndarray
    """Indices at which |curvature| is largest or least nearby: cusps of the evolute."""


def path_gram(
    features: Callable[[Params, Array], Float[Array, "batch ..."]],
    bank: CheckpointBank,
    inputs: Float[Array, "batch ..."],
    *,
    batch_size: int = 64,
) -> Float[np.ndarray, "checkpoint checkpoint"]:
    """Inner products of the features of all checkpoints, centred over checkpoints, without holding the features.

    Args:
        features: parameters and inputs to anything; every number in it is a coordinate of the path.
        bank: checkpoints.
        inputs: the same for all of them.
        batch_size: inputs at a time; memory holds this many times the checkpoints.
    """
    stacked = jax.tree.map(jnp.asarray, bank.params)

    @jax.jit
    def part(stacked: Params, chunk: Array) -> Array:
        rows = jax.lax.map(lambda params: features(params, chunk).reshape(-1), stacked)
        rows = rows - rows.mean(0)
        return jnp.matmul(rows, rows.T, precision="highest")

    total = np.zeros((len(bank), len(bank)))
    for start in range(0, inputs.shape[0], batch_size):
        total += np.asarray(part(stacked, inputs[start : start + batch_size]), np.float64)
    return total


def principal_components(gram: Float[np.ndarray, "checkpoint checkpoint"], count: int = 4) -> Components:
    """Principal components from centred inner products; signs make each score end above its start.

    Args:
        gram: what `path_gram` returns.
        count: components; no more than checkpoints.
    """
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    count = min(count, values.size)
    scores = vectors[:, :count] * np.sqrt(values[:count])
    scores *= np.where(scores[-1] < scores[0], -1, 1)
    return Components(scores, values[:count] / max(values.sum(), 1e-300))


def smoothed(path: Float[np.ndarray, "checkpoint component"], last_width: float | None = None) -> np.ndarray:
    """Gaussian smoothing over the index, of a width that grows linearly from 1 to `last_width` checkpoints.

    Args:
        path: scores.
        last_width: None takes the paper's 50 of 190, in proportion.
    """
    count = len(path)
    last = max(LAST_WIDTH * count, 1.0) if last_width is None else last_width
    index = np.arange(count)
    widths = np.linspace(1.0, last, count)
    weights = np.exp(-0.5 * ((index[:, None] - index) / widths[:, None]) ** 2)
    return weights @ path / weights.sum(1, keepdims=True)


def osculating_circles(curve: Float[np.ndarray, "checkpoint 2"]) -> Geometry:
    """Curvature, centres and vertices of a plane curve, by central differences over the index.

    Example:
        >>> angle = np.linspace(0, 2, 200)
        >>> circle = osculating_circles(3 * np.stack([np.cos(angle), np.sin(angle)], 1))
        >>> round(float(1 / circle.curvature[100]), 2), circle.centers[100].round(2).tolist()
        (3.0, [0.0, 0.0])
    """
    velocity = np.gradient(curve, axis=0)
    acceleration = np.gradient(velocity, axis=0)
    speed = np.maximum(np.linalg.norm(velocity, axis=1), 1e-300)
    curvature = (velocity[:, 0] * acceleration[:, 1] - velocity[:, 1] * acceleration[:, 0]) / speed**3
    normal = np.stack([-velocity[:, 1], velocity[:, 0]], 1) / speed[:, None]
    safe = np.where(np.abs(curvature) > 1e-300, curvature, np.nan)
    size = np.abs(curvature)
    # Second differences at the three points of each end are one-sided.
    inner = slice(3, len(curve) - 3)
    turns = np.diff(size)[:-1] * np.diff(size)[1:] < 0
    vertices = np.arange(1, len(curve) - 1)[turns]
    vertices = vertices[(vertices >= inner.start) & (vertices < inner.stop)]
    return Geometry(curvature, curve + normal / safe[:, None], vertices)


def successive_cka(
    features: Callable[[Params, Array], Float[Array, "example feature"]], bank: CheckpointBank, inputs: Array
) -> Float[np.ndarray, " checkpoint"]:
    """Linear CKA of the features of each checkpoint with those of the one before; NaN for the first.

    Args:
        features: parameters and inputs to a matrix of examples and features.
        bank: checkpoints.
        inputs: the same for all of them.
    """

    @jax.jit
    def similarity(before: Params, after: Params) -> Array:
        one, other = (features(params, inputs) for params in (before, after))
        one, other = one - one.mean(0), other - other.mean(0)

        def product(a: Array, b: Array) -> Array:
            return jnp.linalg.norm(jnp.matmul(a.T, b, precision="highest"))

        return product(one, other) ** 2 / (product(one, one) * product(other, other))

    values = [similarity(bank.checkpoint(index - 1), bank.checkpoint(index)) for index in range(1, len(bank))]
    return np.array([np.nan, *(float(value) for value in values)])


def path_metrics(
    apply: Callable[[Params, Array], Array],
    hidden: Callable[[Params, Array], Float[Array, "batch place token feature"]],
    bank: CheckpointBank,
    inputs: Float[Array, "batch ..."],
    *,
    num_hidden_inputs: int = 512,
    count: int = 4,
) -> xr.Dataset:
    """Essential dynamics and hidden activations of a bank.

    Args:
        apply: the model.
        hidden: the residual stream at each place of the model.
        bank: checkpoints.
        inputs: fixed inputs.
        num_hidden_inputs: how many of them hidden activations are measured on.
        count: components.

    Returns:
        Along `checkpoint`: `output_pc` and `output_pc_smooth` `(..., component)`, `output_curvature` of the smoothed
        first two, `output_evolute_x`, `output_evolute_y`, `output_vertex` (1 at a cusp of the evolute);
        `hidden_pc` of the last place; `cka` `(..., place)`. Attributes `output_explained`, `hidden_explained`.
    """
    outputs = principal_components(path_gram(apply, bank, inputs), count)
    few = inputs[:num_hidden_inputs]
    last = principal_components(path_gram(lambda params, x: hidden(params, x)[:, -1], bank, few), count)
    places = jax.eval_shape(hidden, bank.checkpoint(0), few).shape[1]
    cka = [
        successive_cka(lambda params, x, p=place: _flat(hidden(params, x)[:, p]), bank, few) for place in range(places)
    ]
    smooth = smoothed(outputs.scores)
    plane = np.pad(smooth, ((0, 0), (0, max(2 - smooth.shape[1], 0))))[:, :2]
    geometry = osculating_circles(plane)
    vertex = np.isin(np.arange(len(bank)), geometry.vertices).astype(float)
    component, one = ("checkpoint", "component"), ("checkpoint",)
    return xr.Dataset(
        {
            "output_pc": (component, outputs.scores, {"long_name": "principal components of outputs over training"}),
            "output_pc_smooth": (component, smooth, {"long_name": "the same, smoothed"}),
            "output_curvature": (one, geometry.curvature, {"long_name": "curvature of the smoothed path"}),
            "output_evolute_x": (one, geometry.centers[:, 0]),
            "output_evolute_y": (one, geometry.centers[:, 1]),
            "output_vertex": (one, vertex),
            "hidden_pc": (component, last.scores, {"long_name": "principal components of the last residual stream"}),
            "cka": (("checkpoint", "place"), np.stack(cka, 1), {"long_name": "linear CKA with the checkpoint before"}),
        },
        coords={"checkpoint": bank.steps, "component": np.arange(1, smooth.shape[1] + 1), "place": np.arange(places)},
        attrs={"output_explained": outputs.explained.tolist(), "hidden_explained": last.explained.tolist()},
    )


def _flat(values: Float[Array, "batch token feature"]) -> Float[Array, "example feature"]:
    return values.reshape(-1, values.shape[-1])
