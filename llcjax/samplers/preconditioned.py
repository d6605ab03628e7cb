"""SGLD with a diagonal preconditioner from running moments of the loss gradient (arXiv 2507.21449).

    v <- decay * v + (1 - decay) * g^2,   step_t = step_size / (sqrt(v_hat) + stability)      (each parameter)
    w <- w - step_t/2 * (n_beta * drift + localization * (w - w*)) + sqrt(step_t) * xi

`drift` is the loss gradient g (RMSprop) or its bias-corrected running mean (Adam). The moments see only the loss,
start at 0 and are corrected for it; `bias_correction=0` leaves that out, as devinterp does. The term that the drift
would need for a preconditioner that depends on w is left out, as everywhere in this literature, so the stationary
law is biased while the moments move; with the moments at rest it is the target up to the step size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from llcjax.posterior import LocalPosterior
from llcjax.samplers.base import Sampler
from llcjax.samplers.sgld import Scalar, from_transform
from llcjax.trees import normal_like
from llcjax.types import Params


class Moments(NamedTuple):
    """Running moments of the loss gradient."""

    count: Int[Array, ""]
    first: Params
    second: Params


def rmsprop_sgld(
    posterior: LocalPosterior,
    step_size: Scalar,
    *,
    decay: float = 0.99,
    stability: float = 0.1,
    bias_correction: float = 1.0,
) -> Sampler:
    """SGLD preconditioned by the root mean square of the loss gradient.

    Args:
        posterior: the target.
        step_size: step of a parameter whose gradients have root mean square 1 - stability (squared parameters).
        decay: of the running second moment, in [0, 1).
        stability: added to the root mean square; the largest step is step_size / stability.
        bias_correction: 1 divides by 1 - decay^t, 0 does not (devinterp).
    """
    transform = _preconditioned(posterior, step_size, 0.0, decay, stability, bias_correction)
    return from_transform(posterior, transform)


def adam_sgld(
    posterior: LocalPosterior,
    step_size: Scalar,
    *,
    momentum: float = 0.9,
    decay: float = 0.99,
    stability: float = 0.1,
    bias_correction: float = 1.0,
) -> Sampler:
    """SGLD with Adam's moments: the drift is the running mean of the loss gradient.

    Args:
        posterior: the target.
        step_size: step of a parameter whose gradients have root mean square 1 - stability (squared parameters).
        momentum: decay of the running mean, in [0, 1).
        decay: of the running second moment, in [0, 1).
        stability: added to the root mean square.
        bias_correction: 1 divides by 1 - decay^t, 0 does not.
    """
    transform = _preconditioned(posterior, step_size, momentum, decay, stability, bias_correction)
    return from_transform(posterior, transform)


def _preconditioned(
    posterior: LocalPosterior,
    step_size: Scalar,
    momentum: float,
    decay: float,
    stability: float,
    bias_correction: float,
) -> optax.GradientTransformationExtraArgs:
    def init(params: Params) -> Moments:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Moments(jnp.int32(0), zeros, zeros)

    def corrected(moment: Params, rate: float, count: Array) -> Params:
        scale = 1 - bias_correction * jnp.power(jnp.float32(rate), count)
        return jax.tree.map(lambda leaf: leaf / scale, moment)

    def update(gradient: Params, state: Moments, params: Params = None, **extra: Any) -> tuple[Params, Moments]:
        count = state.count + 1
        first = optax.tree.update_moment(gradient, state.first, momentum, 1)
        second = optax.tree.update_moment(gradient, state.second, decay, 2)
        root = jax.tree.map(jnp.sqrt, corrected(second, decay, count))
        steps = jax.tree.map(lambda r: step_size / (r + stability), root)
        force = posterior.force(corrected(first, momentum, count), params)
        noise = normal_like(extra["key"], params)
        moved = jax.tree.map(lambda s, f, xi: -s / 2 * f + jnp.sqrt(s) * xi, steps, force, noise)
        return moved, Moments(count, first, second)

    return optax.GradientTransformationExtraArgs(init, update)  # ty: ignore[invalid-argument-type]  # stub names the arguments
