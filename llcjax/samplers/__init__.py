"""Samplers behind one contract: `build(posterior, step_size) -> Sampler(init, step)`."""

from llcjax.samplers.base import BuildSampler, Sampler, SamplerState, StepInfo
from llcjax.samplers.sgld import add_localization, from_transform, langevin_step, sgld

SAMPLERS: dict[str, BuildSampler] = {"sgld": sgld}
"""The samplers that a config names."""

__all__ = [
    "SAMPLERS",
    "BuildSampler",
    "Sampler",
    "SamplerState",
    "StepInfo",
    "add_localization",
    "from_transform",
    "langevin_step",
    "sgld",
]
