"""Runs in the environment of devinterp 2.0.1, which is made for language models: small networks in that guise.

An example is a sequence of two tokens, its row and a zero, and the `loss_fn` looks the row up among data that are on
the device already; so what torch's DataLoader collates is two integers an example. Without observables, each of which
costs further forward passes at every draw. It writes the loss of every example at every step to disk: that is part of
its call.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from devinterp.slt.llc import llc
from torch import nn

from benchmarks.torch_models import DEVICE, Network, serve_torch


def row_loss(network: Network) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """Loss of examples that are named by their rows."""
    inputs, targets = network.data.tensors

    def loss_fn(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
        rows = input_ids[:, 0]
        return network.loss(model(inputs[rows]), targets[rows], reduction="none")[:, None]

    return loss_fn


def estimate(network: Network, job: dict[str, Any]) -> dict[str, Any]:
    """LLC of one network."""
    num_examples = len(network.data)
    ids = torch.stack([torch.arange(num_examples), torch.zeros(num_examples, dtype=torch.int64)], 1)
    with tempfile.TemporaryDirectory() as folder:
        result = llc(
            network.model,
            dataset=Dataset.from_dict({"input_ids": ids.numpy()}).with_format("torch"),
            observables={},
            loss_fn=row_loss(network),
            lr=job["step_size"],
            n_beta=job["n_beta"],
            localization=job["localization"],
            num_chains=job["num_chains"],
            num_draws=job["num_draws"],
            num_burnin_steps=job["num_burnin_steps"],
            batch_size=job["batch_size"],
            num_init_loss_batches=max(1, num_examples // job["batch_size"] // job["num_chains"]),  # all data, once
            init_seed=job["seed"],
            device=DEVICE.type,
            output_path=Path(folder) / "samples.zarr",
        )
        return {"llc": float(result["llc_mean"])}


if __name__ == "__main__":
    serve_torch(estimate, "devinterp")
