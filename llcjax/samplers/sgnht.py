"""Stochastic gradient Nose-Hoover thermostat (Ding et al. 2014, algorithm 2).

    v <- v - friction * v - step_size * grad U(w) + sqrt(2 * diffusion * step_size) * xi
    w <- w + v,      friction <- friction + |v|^2 / num_params - step_size

v is the momentum times the square root of the step size. The friction starts at `diffusion` and settles where the
kinetic energy is right, also when minibatch noise adds heat.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from llcjax.posterior import LocalPosterior
from llcjax.samplers.base import Sampler
from llcjax.samplers.sgld import Scalar, from_transform
from llcjax.trees import normal_like, num_params
from llcjax.types import Params


class Thermostat(NamedTuple):
    """Scaled momentum and friction."""

    velocity: Params
    friction: Float[Array, ""]


def sgnht(posterior: LocalPosterior, step_size: Scalar, *, diffusion: float = 0.1) -> Sampler:
    """Nose-Hoover thermostat dynamics.

    Args:
        posterior: the target.
        step_size: squared time step (squared parameters); stable below about 4 / curvature of U.
        diffusion: injected noise a step, as a share of the momentum that it replaces.
    """

    def init(params: Params) -> Thermostat:
        return Thermostat(jax.tree.map(jnp.zeros_like, params), jnp.float32(diffusion))

    def update(gradient: Params, state: Thermostat, params: Params = None, **extra: Any) -> tuple[Params, Thermostat]:
        force = posterior.sampled(posterior.force(gradient, params))
        noise = posterior.sampled(normal_like(extra["key"], params))
        spread = jnp.sqrt(2 * diffusion * step_size)
        velocity = jax.tree.map(
            lambda v, f, xi: v - state.friction * v - step_size * f + spread * xi, state.velocity, force, noise
        )
        energy = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(velocity))
        friction = state.friction + energy / _num_sampled(posterior, params) - step_size
        return velocity, Thermostat(velocity, friction)

    transform = optax.GradientTransformationExtraArgs(init, update)  # ty: ignore[invalid-argument-type]  # stub names the arguments
    return from_transform(posterior, transform)


def _num_sampled(posterior: LocalPosterior, params: Params) -> Float[Array, ""] | int:
    """Number of parameters that move."""
    if posterior.mask is None:
        return num_params(params)
    ones = posterior.sampled(jax.tree.map(jnp.ones_like, params))
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(ones))
