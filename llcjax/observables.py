"""What is measured of each draw besides its own losses: functions of the parameters, and losses on probe batches.

Observables are stored draw by draw, or reduced while the chain runs to means and covariances over blocks of draws, so
that memory does not grow with the number of draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from llcjax.types import Batch, LossFn, Observe, Params

Reduce = Literal["none", "mean", "covariance"]
PROBE = "probe_"
"""What the names of losses on probe batches begin with."""
INIT_PROBE = "init_probe_"
"""The same of the losses at the checkpoints."""


class Watch(NamedTuple):
    """What the observables need at run time."""

    probes: dict[str, Batch]
    """Fixed batches whose losses are observed."""
    num_draws: Any
    """Draws of a whole chain; those beyond it count for nothing."""


class Moments(NamedTuple):
    """Streamed moments of a vector of observables (Welford's recursion), or of several with leading axes."""

    count: Float[Array, ""]
    mean: Float[Array, " feature"]
    scatter: Float[Array, "feature feature"] | None
    """Sum of products of deviations from the mean; None where only means are wanted."""

    @classmethod
    def zeros(cls, size: int, reduce: Reduce) -> Moments:
        """Moments of nothing."""
        scatter = jnp.zeros((size, size)) if reduce == "covariance" else None
        return cls(jnp.float32(0), jnp.zeros(size), scatter)

    def add(self, values: Float[Array, " feature"], counts: Array) -> Moments:
        """The moments with one more draw, if it counts."""
        count = self.count + counts
        gap = values - self.mean
        mean = jnp.where(counts, self.mean + gap / jnp.maximum(count, 1), self.mean)
        if self.scatter is None:
            return Moments(count, mean, None)
        scatter = jnp.where(counts, self.scatter + jnp.outer(gap, values - mean), self.scatter)
        return Moments(count, mean, scatter)


def probe_losses(
    loss_fn: LossFn, params: Params, batch: Batch, *, per_position: bool = False, without_weight: float = 0.0
) -> Array:
    """Losses of each example of a batch, `(example,)`: the weighted mean over its positions.

    With `per_position` the losses themselves, `(example, position)`; positions of weight 0 are `without_weight` there.
    """
    output = loss_fn(params, batch)
    losses, weights = output if isinstance(output, tuple) else (output, None)
    losses = losses.astype(jnp.float32)
    weights = jnp.ones_like(losses) if weights is None else jnp.asarray(weights).astype(jnp.float32)
    if losses.ndim == 1 or per_position:
        return jnp.where(weights > 0, losses, without_weight)
    return jnp.sum(weights * losses, 1) / jnp.sum(weights, 1)


def measure(
    observe: Observe | None, loss_fn: LossFn, params: Params, probes: Mapping[str, Batch], *, per_position: bool
) -> Any:
    """All observables at `params`: what `observe` returns, and the losses on the probe batches beside it."""
    seen = None if observe is None else observe(params)
    if not probes:
        return seen
    named = {} if seen is None else dict(seen) if isinstance(seen, dict) else {"observed": seen}
    for name, batch in probes.items():
        named[PROBE + name] = probe_losses(loss_fn, params, batch, per_position=per_position)
    return named


def as_vector(observed: Any) -> Float[Array, " feature"]:
    """All observables end to end, in the order of their sorted names."""
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(observed)])


def feature_table(observed: Any) -> list[tuple[str, list[int]]]:
    """Names and shapes of the observables in the order of `as_vector`."""
    named = observed if isinstance(observed, dict) else {"observed": observed}
    return [(name, list(np.shape(named[name]))) for name in sorted(named)]


def weighted(sweep: xr.Dataset, probe: str) -> np.ndarray:
    """Which losses of a probe count: a mask `(example,)` or `(example, position)`.

    Positions of weight 0 are NaN at the checkpoints. Where a sweep has no losses there (devinterp), all count.
    """
    if INIT_PROBE + probe in sweep:
        known = sweep[INIT_PROBE + probe]
        return np.isfinite(known.isel(checkpoint=0).values if "checkpoint" in known.dims else known.values)
    losses = sweep[PROBE + probe]
    return np.ones([losses.sizes[dim] for dim in losses.dims if str(dim).startswith(PROBE)], bool)


def check_probes(loss_fn: LossFn, params: Params, probes: Mapping[str, Batch]) -> None:
    """Refuses probe batches on which the loss has no losses of examples.

    Raises:
        ValueError: the loss is a mean over the batch, or an example axis is missing.
    """
    for name, batch in probes.items():
        output = jax.eval_shape(loss_fn, params, batch)
        losses = output[0] if isinstance(output, tuple) else output
        leaves = jax.tree.leaves(batch)
        if not leaves or losses.ndim == 0 or losses.shape[0] != leaves[0].shape[0]:
            raise ValueError(
                f"probes[{name!r}] needs one loss an example, but loss_fn returns shape {losses.shape} on it; return "
                "losses of shape (batch,) or (batch, position)."
            )
