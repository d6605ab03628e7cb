"""Runs in devinterp's environment (torch, no jax): the LLC of a deep linear network by its documented call.

Reads jobs from standard input, a JSON object a line, and answers with one. The data are sliced from tensors in memory,
which is 2 to 3 times as fast as torch's own DataLoader on networks of this size.
"""

import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from devinterp.optim.sgld import SGLD
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch.utils.data import DataLoader, TensorDataset


class Slices(DataLoader):
    """Shuffled batches, sliced from tensors that are already where they are used."""

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        tensors = self.dataset.tensors
        order = torch.randperm(len(tensors[0]))
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            yield [tensor[rows] for tensor in tensors]


def evaluate(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Half the squared error, summed over outputs."""
    inputs, targets = batch
    return torch.mean(torch.sum((model(inputs) - targets) ** 2, -1)) / 2


def solve(job: dict[str, Any]) -> dict[str, float]:
    """LLC of one network and the seconds that it took."""
    stored = np.load(job["file"])
    layers = []
    for name in sorted(key for key in stored if key.startswith("layer")):
        matrix = torch.from_numpy(stored[name])
        layer = torch.nn.Linear(*matrix.shape, bias=False)
        layer.weight.data = matrix.T.contiguous()
        layers.append(layer)
    data = TensorDataset(torch.from_numpy(stored["inputs"]), torch.from_numpy(stored["targets"]))
    loader = Slices(data, batch_size=job["batch_size"], shuffle=True, drop_last=True)
    start = time.perf_counter()
    result = estimate_learning_coeff_with_summary(
        torch.nn.Sequential(*layers),
        loader=loader,
        evaluate=evaluate,
        sampling_method=SGLD,
        optimizer_kwargs={"lr": job["step_size"], "nbeta": job["n_beta"], "localization": job["localization"]},
        num_draws=job["num_draws"],
        num_chains=job["num_chains"],
        num_burnin_steps=job["num_burnin_steps"],
        seed=job["seed"],
        verbose=False,
    )
    return {"llc": float(result["llc/mean"]), "seconds": time.perf_counter() - start}


def main() -> None:
    """Says its versions, then answers jobs until the input ends."""
    warnings.simplefilter("ignore")
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the library prints is no answer
    versions = {name: importlib.metadata.version(name) for name in ("devinterp", "torch")}
    print(json.dumps({**versions, "threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(solve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
