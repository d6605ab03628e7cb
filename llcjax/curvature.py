"""Curvature of the loss: trace and top eigenvalues of the Hessian, with their errors.

The baseline that the LLC is held against (arXiv 2402.02364, appendix B.5). Hutchinson's trace uses a fresh batch for
each probe, so that its standard error holds the noise of the data too; Lanczos runs on several batches, with full
reorthogonalisation, and says how far it has converged. (Forty lines of our own, since what is needed beside the
recursions, the two errors and the batches, no library has.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from llcjax.checkpoints import CheckpointBank
from llcjax.keys import as_key
from llcjax.posterior import evaluate
from llcjax.types import Batch, LossFn, Params, PRNGKey

Matvec = Callable[[Float[Array, " param"]], Float[Array, " param"]]


class Spectrum(NamedTuple):
    """Top of a spectrum, largest value first."""

    values: Float[Array, " top"]
    residuals: Float[Array, " top"]
    """Norm of H v - value v: some true eigenvalue lies within this distance of the value."""


def hessian_product(loss_fn: LossFn, params: Params, batch: Batch) -> tuple[Matvec, int]:
    """The product of the Hessian of the mean loss with a flat vector, and the number of parameters."""
    flat, unravel = ravel_pytree(params)

    def gradient(point: Float[Array, " param"]) -> Float[Array, " param"]:
        return jax.grad(lambda p: evaluate(loss_fn, unravel(p), batch).mean)(point)

    return lambda vector: jax.jvp(gradient, (flat,), (vector,))[1], flat.size


def lanczos(product: Matvec, size: int, key: PRNGKey, *, num_steps: int, num_top: int) -> Spectrum:
    """Largest eigenvalues of a symmetric matrix by Lanczos with full reorthogonalisation.

    Args:
        product: of the matrix with a vector.
        size: of the vector.
        key: of the first vector.
        num_steps: products, at most `size`.
        num_top: eigenvalues to return, at most `num_steps`.

    Example:
        >>> matrix = jnp.diag(jnp.arange(50.0))
        >>> top = lanczos(lambda v: matrix @ v, 50, jax.random.key(0), num_steps=40, num_top=2)
        >>> top.values.round(2).tolist()
        [49.0, 48.0]
    """

    def step(basis: Array, index: Array) -> tuple[Array, tuple[Array, Array]]:
        moved = product(basis[index])
        diagonal, whole = basis[index] @ moved, jnp.linalg.norm(moved)
        # Twice is enough; rows that are not there yet are 0.
        for _ in range(2):
            moved = moved - basis.T @ (basis @ moved)
        length = jnp.linalg.norm(moved)
        # A space that is exhausted has no next vector: 0 leaves the rest of the recursion at 0.
        following = jnp.where(length > 1e-5 * whole, moved / jnp.maximum(length, 1e-30), 0.0)
        return basis.at[index + 1].set(following), (diagonal, length)

    first = jax.random.normal(key, (size,))
    basis = jnp.zeros((num_steps + 1, size)).at[0].set(first / jnp.linalg.norm(first))
    _, (diagonal, beside) = jax.lax.scan(step, basis, jnp.arange(num_steps))
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))
    residuals = jnp.abs(beside[-1] * vectors[-1])
    return Spectrum(values[::-1][:num_top], residuals[::-1][:num_top])


def curvature(
    loss_fn: LossFn,
    bank: CheckpointBank,
    sample: Callable[[PRNGKey, int], Batch],
    *,
    num_probes: int = 128,
    batch_size: int = 1024,
    num_batches: int = 4,
    eigenvalue_batch_size: int = 4096,
    num_steps: int = 40,
    num_top: int = 3,
    seed: int = 2_000_003,
) -> xr.Dataset:
    """Hessian of the mean loss at every checkpoint: trace by Hutchinson, top eigenvalues by Lanczos.

    All checkpoints see the same probes and batches.

    Args:
        loss_fn: as of a sweep.
        bank: checkpoints.
        sample: `(key, batch_size) -> batch`, fresh examples.
        num_probes: random sign vectors, each with a batch of its own; at least 2.
        batch_size: examples a probe.
        num_batches: batches on which Lanczos runs; their spread gives the error; at least 2.
        eigenvalue_batch_size: examples of each; few examples bias the largest eigenvalue upwards.
        num_steps: Lanczos steps.
        num_top: eigenvalues.
        seed: of probes and batches.

    Returns:
        Along `checkpoint`, squared errors (or nats) per squared parameter: `hessian_trace`, `hessian_trace_stderr`,
        and along `(checkpoint, order)` `eigenvalue`, `eigenvalue_stderr` (over batches) and `eigenvalue_residual`.

    Raises:
        ValueError: fewer than 2 probes or batches, or more eigenvalues than steps.
    """
    if min(num_probes, num_batches) < 2 or not 0 < num_top <= num_steps:
        raise ValueError(
            f"num_probes={num_probes} and num_batches={num_batches} must be at least 2 for an error, and "
            f"num_top={num_top} between 1 and num_steps={num_steps}."
        )
    probe_root, batch_root = jax.random.split(as_key(seed))

    def probe(params: Params, key: PRNGKey) -> Float[Array, ""]:
        data_key, sign_key = jax.random.split(key)
        product, size = hessian_product(loss_fn, params, sample(data_key, batch_size))
        signs = jax.random.rademacher(sign_key, (size,), jnp.float32)
        return signs @ product(signs)

    def top(params: Params, key: PRNGKey) -> Spectrum:
        data_key, start_key = jax.random.split(key)
        product, size = hessian_product(loss_fn, params, sample(data_key, eigenvalue_batch_size))
        return lanczos(product, size, start_key, num_steps=min(num_steps, size), num_top=min(num_top, size))

    probe_keys, batch_keys = jax.random.split(probe_root, num_probes), jax.random.split(batch_root, num_batches)
    traces = jax.jit(lambda params: jax.lax.map(lambda key: probe(params, key), probe_keys))
    spectra = jax.jit(lambda params: jax.lax.map(lambda key: top(params, key), batch_keys))
    checkpoints = [bank.checkpoint(index) for index in range(len(bank))]
    # Fewer digits, as accelerators have by default, would cost Lanczos its orthogonality.
    with jax.default_matmul_precision("highest"):
        trace = np.stack([np.asarray(traces(params), np.float64) for params in checkpoints])
        found = [spectra(params) for params in checkpoints]
    values = np.stack([np.asarray(one.values, np.float64) for one in found])
    residual = np.stack([np.asarray(one.residuals).max(0) for one in found])
    dims, ordered = ("checkpoint",), ("checkpoint", "order")
    return xr.Dataset(
        {
            "hessian_trace": (dims, trace.mean(1), {"long_name": "trace of the Hessian"}),
            "hessian_trace_stderr": (dims, trace.std(1, ddof=1) / num_probes**0.5),
            "eigenvalue": (ordered, values.mean(1), {"long_name": "top eigenvalues of the Hessian"}),
            "eigenvalue_stderr": (ordered, values.std(1, ddof=1) / num_batches**0.5),
            "eigenvalue_residual": (ordered, residual),
        },
        coords={"checkpoint": bank.steps, "order": np.arange(1, values.shape[2] + 1)},
    )
