"""Runs in devinterp's environment (torch, no jax): the LLC of a small network by its documented call.

Reads jobs from standard input, a JSON object a line, and answers with one. With `sliced` the batches are sliced from
tensors in memory, which on small networks is 2 to 3 times as fast as torch's own DataLoader.
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


def half_squared_error(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Summed over outputs, mean over examples."""
    inputs, targets = batch
    return torch.mean(torch.sum((model(inputs) - targets) ** 2, -1)) / 2


def cross_entropy(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Mean over examples."""
    inputs, labels = batch
    return torch.nn.functional.cross_entropy(model(inputs), labels)


def deep_linear(stored: Any) -> torch.nn.Module:
    """X W_1 ... W_L."""
    names = sorted(name for name in stored if name.startswith("layer"))
    return torch.nn.Sequential(*(linear(stored[name]) for name in names))


def perceptron(stored: Any) -> torch.nn.Module:
    """One hidden layer of rectified linear units."""
    first, last = linear(stored["w0"], stored["b0"]), linear(stored["w1"], stored["b1"])
    return torch.nn.Sequential(first, torch.nn.ReLU(), last)


def linear(matrix: np.ndarray, bias: np.ndarray | None = None) -> torch.nn.Linear:
    """X W + b."""
    layer = torch.nn.Linear(*matrix.shape, bias=bias is not None)
    layer.weight.data = torch.from_numpy(matrix).T.contiguous()
    if bias is not None:
        layer.bias.data = torch.from_numpy(bias)
    return layer


MODELS = {"deep_linear": (deep_linear, half_squared_error), "perceptron": (perceptron, cross_entropy)}


def solve(job: dict[str, Any]) -> dict[str, float]:
    """LLC of one network and the seconds that it took."""
    stored = np.load(job["file"])
    build, evaluate = MODELS[job["model"]]
    data = TensorDataset(torch.from_numpy(stored["inputs"]), torch.from_numpy(stored["targets"]))
    kind = Slices if job["sliced"] else DataLoader
    loader = kind(data, batch_size=job["batch_size"], shuffle=True, drop_last=True)
    model = build(stored)
    start = time.perf_counter()
    result = estimate_learning_coeff_with_summary(
        model,
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
