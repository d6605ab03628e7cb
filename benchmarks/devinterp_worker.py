"""Runs in the environment of devinterp 1.3.2: the LLC of a small network by its documented call.

With `sliced` the batches are sliced from tensors on the device, which on small networks is 2 to 3 times as fast as
torch's own DataLoader. With `exact_start` it is told L(w*) on all data, otherwise it takes a few batches.
"""

from __future__ import annotations

from typing import Any

from devinterp.optim.sgld import SGLD
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch.utils.data import DataLoader

from benchmarks.torch_models import DEVICE, Network, Slices, serve_torch


def estimate(network: Network, job: dict[str, Any]) -> dict[str, Any]:
    """LLC of one network, and of each chain."""
    kind, data = (Slices, network.data) if job["sliced"] else (DataLoader, network.host_data)
    result = estimate_learning_coeff_with_summary(
        network.model,
        loader=kind(data, batch_size=job["batch_size"], shuffle=True, drop_last=True),
        evaluate=network.evaluate,
        sampling_method=SGLD,
        optimizer_kwargs={"lr": job["step_size"], "nbeta": job["n_beta"], "localization": job["localization"]},
        num_draws=job["num_draws"],
        num_chains=job["num_chains"],
        num_burnin_steps=job["num_burnin_steps"],
        seed=job["seed"],
        init_loss=network.loss_at_start if job.get("exact_start") else None,
        device=DEVICE,
        verbose=False,
    )
    chains = [float(result[f"llc-chain/{chain}"]) for chain in range(job["num_chains"])]
    return {"llc": float(result["llc/mean"]), "llc of chains": chains}


if __name__ == "__main__":
    serve_torch(estimate, "devinterp")
