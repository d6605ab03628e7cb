"""Metropolis-adjusted samplers: exact on the loss that they are given, so give them the full batch.

They are oracles for the others. Each step evaluates the loss where the chain is and where it wants to go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from llcjax.posterior import LocalPosterior, Loss
from llcjax.samplers.base import Sampler, SamplerState, StepInfo
from llcjax.samplers.sgld import Scalar
from llcjax.trees import normal_like
from llcjax.types import Batch, Params, PRNGKey


class _Point(NamedTuple):
    """A position with its loss, gradient norm, potential and force (on the sampled entries)."""

    params: Params
    loss: Loss
    gradient_norm: Float[Array, ""]
    potential: Float[Array, ""]
    force: Params


def _point(posterior: LocalPosterior, params: Params, batch: Batch) -> _Point:
    loss, gradient = posterior.loss_and_grad(params, batch)
    norm = optax.tree.norm(posterior.sampled(gradient))
    force = posterior.sampled(posterior.force(gradient, params))
    return _Point(params, loss, norm, posterior.potential(loss.mean, params), force)


def mala(posterior: LocalPosterior, step_size: Scalar) -> Sampler:
    """Metropolis-adjusted Langevin: SGLD's move, accepted with the probability that makes it exact.

    Args:
        posterior: the target.
        step_size: epsilon (squared parameters).
    """

    def propose(key: PRNGKey, here: _Point, batch: Batch) -> tuple[_Point, Float[Array, ""]]:
        noise = posterior.sampled(normal_like(key, here.params))
        spread = jnp.sqrt(step_size)
        moved = jax.tree.map(lambda w, f, xi: w - step_size / 2 * f + spread * xi, here.params, here.force, noise)
        there = _point(posterior, moved, batch)
        return there, _log_ratio(here, there, step_size)

    return _metropolis(posterior, propose)


def _log_ratio(here: _Point, there: _Point, step_size: Scalar) -> Float[Array, ""]:
    """Log of the Metropolis-Hastings ratio of a Langevin move, log q(w|w') - log q(w'|w) + U(w) - U(w').

    q(w'|w) = N(w' | w - step_size/2 grad U(w), step_size I).
    """

    def squared_noise(to: _Point, origin: _Point) -> Float[Array, ""]:
        gaps = jax.tree.map(
            lambda a, b, f: jnp.sum(jnp.square(a - b + step_size / 2 * f)), to.params, origin.params, origin.force
        )
        return sum(jax.tree.leaves(gaps), jnp.float32(0))

    balance = (squared_noise(there, here) - squared_noise(here, there)) / (2 * step_size)
    return here.potential - there.potential + balance


def langevin_acceptance(
    posterior: LocalPosterior, step_size: Scalar, before: Params, after: Params, batch: Batch
) -> Float[Array, ""]:
    """Probability with which MALA would have accepted a move that SGLD made (a health check of its step size).

    Args:
        posterior: the target.
        step_size: of the move.
        before: the position before the move.
        after: the position after it, one step later.
        batch: on which both potentials are evaluated: the batch of the step, or all examples.
    """
    log_ratio = _log_ratio(_point(posterior, before, batch), _point(posterior, after, batch), step_size)
    return _probability(log_ratio)


def _probability(log_ratio: Float[Array, ""]) -> Float[Array, ""]:
    """Acceptance probability; a move that is not finite (outside the box, or overflown) is refused."""
    return jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0)), 0)


def hmc(posterior: LocalPosterior, step_size: Scalar, *, num_leapfrog_steps: int = 10) -> Sampler:
    """Hamiltonian Monte Carlo with unit masses.

    Args:
        posterior: the target.
        step_size: squared time step of the leapfrog integrator (squared parameters).
        num_leapfrog_steps: steps of one trajectory.
    """
    time_step = jnp.sqrt(step_size)

    def propose(key: PRNGKey, here: _Point, batch: Batch) -> tuple[_Point, Float[Array, ""]]:
        start = posterior.sampled(normal_like(key, here.params))

        def leap(carry: tuple[Params, _Point], _: None) -> tuple[tuple[Params, _Point], None]:
            momentum, point = carry
            half = jax.tree.map(lambda p, f: p - time_step / 2 * f, momentum, point.force)
            there = _point(posterior, jax.tree.map(lambda w, p: w + time_step * p, point.params, half), batch)
            return (jax.tree.map(lambda p, f: p - time_step / 2 * f, half, there.force), there), None

        (momentum, there), _ = jax.lax.scan(leap, (start, here), None, length=int(num_leapfrog_steps))
        kinetic = [jnp.sum(jnp.square(leaf)) / 2 for leaf in jax.tree.leaves(start)]
        after = [jnp.sum(jnp.square(leaf)) / 2 for leaf in jax.tree.leaves(momentum)]
        return there, here.potential + sum(kinetic) - there.potential - sum(after)

    return _metropolis(posterior, propose)


Propose = Callable[[PRNGKey, _Point, Batch], tuple[_Point, Float[Array, ""]]]
"""`(key, here, batch) -> (there, log of the acceptance ratio)`."""


def _metropolis(posterior: LocalPosterior, propose: Propose) -> Sampler:
    """A sampler that moves where a proposal is accepted and else stays."""

    def init(params: Params) -> SamplerState:
        return SamplerState(params, ())

    def step(key: PRNGKey, state: SamplerState, batch: Batch) -> tuple[SamplerState, StepInfo]:
        propose_key, accept_key = jax.random.split(key)
        here = _point(posterior, state.params, batch)
        there, log_ratio = propose(propose_key, here, batch)
        acceptance = _probability(log_ratio)
        accepted = jax.random.uniform(accept_key) < acceptance
        params = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), there.params, here.params)
        return SamplerState(params, ()), StepInfo(here.loss, here.gradient_norm, acceptance)

    return Sampler(init, step)
