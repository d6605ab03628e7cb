"""Samplers behind one contract: `build(posterior, step_size, **options) -> Sampler(init, step)`."""

import inspect

from llcjax.samplers.base import BuildSampler, Sampler, SamplerState, StepInfo
from llcjax.samplers.metropolis import hmc, langevin_acceptance, mala
from llcjax.samplers.preconditioned import adam_sgld, rmsprop_sgld
from llcjax.samplers.schedule import DECAYING, step_share
from llcjax.samplers.sgld import add_prior, from_transform, langevin_step, sgld
from llcjax.samplers.sgnht import sgnht

SAMPLERS: dict[str, BuildSampler] = {
    "sgld": sgld,
    "rmsprop_sgld": rmsprop_sgld,
    "adam_sgld": adam_sgld,
    "sgnht": sgnht,
    "mala": mala,
    "hmc": hmc,
}
"""The samplers that a config names."""

FULL_BATCH = ("mala", "hmc")
"""Samplers that are exact on the full batch and meaningless on minibatches."""


def sampler_options(name: str) -> tuple[str, ...]:
    """Names of the options of a sampler, such as `decay` of `rmsprop_sgld`."""
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


__all__ = [
    "DECAYING",
    "FULL_BATCH",
    "SAMPLERS",
    "BuildSampler",
    "Sampler",
    "SamplerState",
    "StepInfo",
    "adam_sgld",
    "add_prior",
    "from_transform",
    "hmc",
    "langevin_acceptance",
    "langevin_step",
    "mala",
    "rmsprop_sgld",
    "sampler_options",
    "sgld",
    "sgnht",
    "step_share",
]
