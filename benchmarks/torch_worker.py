"""Runs in the environment of devinterp 1.3.2: SGLD in torch alone, a loop of our own around a compiled gradient.

No library does this; it is what a user could write who knows torch.compile and mixed precision, and so the fastest
that torch can be asked to be. One chain after another, losses kept on the device, one pass over all parameters a step.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from benchmarks.torch_models import DEVICE, Network, serve_torch


@functools.lru_cache(maxsize=1)
def _mean_loss(network: Network, compiled: bool) -> Any:
    """The mean loss of a batch, compiled once for all calls; products and attention in bfloat16."""

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return network.evaluate(network.model, (inputs, targets))

    return torch.compile(loss) if compiled else loss


def estimate(network: Network, job: dict[str, Any]) -> dict[str, Any]:
    """LLC of one network."""
    torch.manual_seed(job["seed"])
    start = [parameter.detach().clone() for parameter in network.model.parameters()]
    means = torch.stack([_chain(network, start, job) for _ in range(job["num_chains"])])
    return {"llc": job["n_beta"] * (means.mean().item() - network.loss_at_start)}


def _chain(network: Network, start: list[torch.Tensor], job: dict[str, Any]) -> torch.Tensor:
    """Mean loss of a chain over its draws."""
    loss, parameters = _mean_loss(network, job.get("compile", True)), list(network.model.parameters())
    half, losses = job["step_size"] / 2, []
    for step in range(job["num_burnin_steps"] + job["num_draws"]):
        rows = torch.randint(len(network.data), (job["batch_size"],), device=DEVICE)
        value = loss(*(tensor[rows] for tensor in network.data.tensors))
        gradient = torch.autograd.grad(value, parameters)
        if step >= job["num_burnin_steps"]:
            losses.append(value.detach())
        with torch.no_grad():
            torch._foreach_lerp_(parameters, start, half * job["localization"])
            torch._foreach_add_(parameters, gradient, alpha=-half * job["n_beta"])
            noise = [torch.randn_like(parameter) for parameter in parameters]
            torch._foreach_add_(parameters, noise, alpha=job["step_size"] ** 0.5)
    with torch.no_grad():
        torch._foreach_copy_(parameters, start)
    return torch.stack(losses).float().mean()


if __name__ == "__main__":
    serve_torch(estimate)
