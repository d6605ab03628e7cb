"""Stochastic gradient Langevin dynamics as optax transforms.

    w <- w - step_size/2 * grad U(w) + sqrt(step_size) * xi,
    grad U(w) = n_beta * grad L(w) + localization * (w - w*)

(Welling & Teh 2011, eq. 4, localised as in arXiv 2308.12108, algorithm 1.) On a quadratic with curvature h the
discretised chain has variance 1 / (p * (1 - step_size * p / 4)) with p = n_beta * h + localization, and diverges
at step_size * p >= 4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from llcjax.posterior import LocalPosterior
from llcjax.samplers.base import Sampler, SamplerState, StepInfo
from llcjax.samplers.transforms import stateless
from llcjax.trees import normal_like
from llcjax.types import Batch, Params, PRNGKey

Scalar = Float[Array, ""] | float


def add_prior(posterior: LocalPosterior) -> optax.GradientTransformationExtraArgs:
    """Turns the gradient of the loss into that of U: n_beta * gradient + localisation + weight decay."""

    def move(updates: Params, params: Params, key: PRNGKey) -> Params:
        del key
        return posterior.force(updates, params)

    return stateless(move)


def langevin_step(step_size: Scalar) -> optax.GradientTransformationExtraArgs:
    """Turns the gradient of U into a Langevin update: -step_size/2 * gradient + sqrt(step_size) * noise."""

    def move(updates: Params, params: Params, key: PRNGKey) -> Params:
        del params
        noise = normal_like(key, updates)
        drift, spread = -step_size / 2, jnp.sqrt(step_size)
        return jax.tree.map(lambda u, xi: drift * u + spread * xi, updates, noise)

    return stateless(move)


def sgld(posterior: LocalPosterior, step_size: Scalar) -> Sampler:
    """Localised SGLD.

    Args:
        posterior: the target.
        step_size: epsilon, in units of squared parameters.

    Returns:
        A sampler; `step` records the loss of w_t on the minibatch before moving.
    """
    return from_transform(posterior, optax.chain(add_prior(posterior), langevin_step(step_size)))


def from_transform(posterior: LocalPosterior, transform: optax.GradientTransformationExtraArgs) -> Sampler:
    """A sampler from any optax transform that takes `key=` and maps the loss gradient to an update.

    Entries outside the posterior's mask never move, and parameters that leave its box are reflected.
    """

    def init(params: Params) -> SamplerState:
        return SamplerState(params, transform.init(params))

    def step(key: PRNGKey, state: SamplerState, batch: Batch) -> tuple[SamplerState, StepInfo]:
        loss, gradient = posterior.loss_and_grad(state.params, batch)
        with jax.named_scope("update"):
            gradient = posterior.sampled(gradient)
            updates, carried = transform.update(gradient, state.carried, state.params, key=key)
            moved = optax.apply_updates(state.params, posterior.sampled(updates))
            info = StepInfo(loss, optax.tree.norm(gradient))
            return SamplerState(posterior.confine(moved), carried), info

    return Sampler(init, step)
