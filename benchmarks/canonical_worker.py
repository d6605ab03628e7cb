"""Runs in the environment of canonical-interp: the LLC of a small network by its documented call.

With `sliced` the batches are sliced from tensors on the device, otherwise they come from the DataLoader of its quick
start. It keeps the batches of the first epoch and repeats them, so over many epochs the loader hardly counts. `compile`
is passed on; its default is "reduce-overhead", torch.compile's mode for CUDA graphs. Attention is computed by torch's
plain kernels: torch neither batches nor compiles its fused ones under the library's vmap.
"""

from __future__ import annotations

import functools
from typing import Any

from canonical_interp.slt import LLCEstimator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.torch_models import DEVICE, Network, Slices, serve_torch


@functools.lru_cache(maxsize=1)
def quick_start_loader(data: TensorDataset, batch_size: int) -> DataLoader:
    """Made once, as its worker processes persist from call to call."""
    return DataLoader(
        data, batch_size=batch_size, shuffle=False, pin_memory=True, num_workers=4, persistent_workers=True
    )


def estimate(network: Network, job: dict[str, Any]) -> dict[str, Any]:
    """LLC of one network."""
    if job["sliced"]:
        loader = Slices(network.data, batch_size=job["batch_size"], shuffle=True, drop_last=True)
    else:
        loader = quick_start_loader(network.host_data, job["batch_size"])
    estimator = LLCEstimator(
        draws=job["num_draws"],
        chains=job["num_chains"],
        burnin_steps=job["num_burnin_steps"],
        learning_rate=job["step_size"],
        localization=job["localization"],
        nbeta=job["n_beta"],
    )
    with sdpa_kernel(SDPBackend.MATH):
        result = estimator.estimate_llc(
            network.model,
            loader,
            criterion_fn=network.loss,
            devices=DEVICE,
            seed=job["seed"],
            compile=job["compile"],
            show_progress=False,
        )
    return {"llc": float(result)}


if __name__ == "__main__":
    serve_torch(estimate, "canonical-interp")
