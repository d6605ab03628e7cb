"""What a sampler is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llcjax.posterior import LocalPosterior, Loss
from llcjax.types import Batch, Params, PRNGKey


class SamplerState(NamedTuple):
    """State of a Markov chain: the position and whatever the sampler carries."""

    params: Params
    carried: Any


class StepInfo(NamedTuple):
    """Facts of one step, all at the position *before* the update."""

    loss: Loss


class Sampler(NamedTuple):
    """A Markov kernel as two pure functions, built inside the traced run from traced hyperparameters."""

    init: Callable[[Params], SamplerState]
    """`init(params) -> state`."""
    step: Callable[[PRNGKey, SamplerState, Batch], tuple[SamplerState, StepInfo]]
    """`step(key, state, batch) -> (state, info)`."""


BuildSampler = Callable[..., Sampler]
"""`build(posterior: LocalPosterior, step_size) -> Sampler`."""

__all__ = ["BuildSampler", "LocalPosterior", "Sampler", "SamplerState", "StepInfo"]
