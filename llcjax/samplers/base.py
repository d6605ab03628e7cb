"""What a sampler is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from llcjax.posterior import LocalPosterior, Loss
from llcjax.types import Batch, Params, PRNGKey


class SamplerState(NamedTuple):
    """State of a Markov chain: the position and whatever the sampler carries."""

    params: Params
    carried: Any


class StepInfo(NamedTuple):
    """Facts of one step, all at the position *before* the update."""

    loss: Loss
    gradient_norm: Float[Array, ""]
    """Norm of the gradient of the mean loss, on the sampled entries."""
    acceptance: Float[Array, ""] | None = None
    """Probability with which the move was accepted, of a Metropolis sampler."""


class Sampler(NamedTuple):
    """A Markov kernel as two pure functions, built inside the traced run from traced hyperparameters."""

    init: Callable[[Params], SamplerState]
    """`init(params) -> state`."""
    step: Callable[[PRNGKey, SamplerState, Batch], tuple[SamplerState, StepInfo]]
    """`step(key, state, batch) -> (state, info)`."""


BuildSampler = Callable[..., Sampler]
"""`build(posterior: LocalPosterior, step_size, **options) -> Sampler`."""

__all__ = ["BuildSampler", "LocalPosterior", "Sampler", "SamplerState", "StepInfo"]
