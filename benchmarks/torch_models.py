"""The networks of our workloads as torch modules, and how the torch peers are asked; runs in a peer's environment."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.worker import serve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

AT_ONCE = 128
"""Examples that are evaluated together on the way to L(w*)."""

Arrays = Mapping[str, np.ndarray]


class Network(NamedTuple):
    """A model with its loss and its data."""

    model: nn.Module
    loss: Callable[..., torch.Tensor]
    """`loss(outputs, targets)`, the mean; with reduction="none" one number an example."""
    data: TensorDataset
    """Inputs and targets where they are used."""
    host_data: TensorDataset
    """The same in the host's memory, where torch's own DataLoader collates them."""
    loss_at_start: float
    """L(w*) on all data in float32, for our side to compare."""

    def evaluate(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of a batch."""
        inputs, targets = batch
        return self.loss(model(inputs), targets)


class Slices(DataLoader):
    """Shuffled batches, sliced from tensors that are already where they are used."""

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        tensors = self.dataset.tensors
        order = torch.randperm(len(tensors[0]), device=tensors[0].device)
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            yield [tensor[rows] for tensor in tensors]


class Attention(nn.Module):
    """Causal softmax attention; each head's query, key and value lie side by side."""

    def __init__(self, arrays: Arrays, name: str, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = linear(arrays[f"{name}/qkv/kernel"])
        self.output = linear(arrays[f"{name}/output/kernel"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mixes the tokens of `(batch, token, width)`."""
        heads = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(*heads.chunk(3, -1), is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Pre-norm attention and MLP with the residual stream added twice."""

    def __init__(self, arrays: Arrays, name: str, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = layer_norm(arrays, f"{name}/attention_norm")
        self.attention = Attention(arrays, f"{name}/attention", num_heads)
        self.mlp_norm = layer_norm(arrays, f"{name}/mlp_norm")
        self.mlp_in = linear(arrays[f"{name}/mlp_in/kernel"], arrays[f"{name}/mlp_in/bias"])
        self.mlp_out = linear(arrays[f"{name}/mlp_out/kernel"], arrays[f"{name}/mlp_out/bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The next residual stream."""
        attended = x + self.attention(self.attention_norm(x))
        return x + attended + self.mlp_out(functional.relu(self.mlp_in(self.mlp_norm(attended))))


class IclTransformer(nn.Module):
    """`llcjax.models.icl_transformer` with the paper's options, from its parameters."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        num_blocks = _num_blocks(arrays)
        self.embed = linear(arrays["embed/kernel"])
        self.positions = nn.Parameter(torch.from_numpy(arrays["positions"]))
        blocks = (Block(arrays, f"blocks/{number}", int(arrays["num_heads"])) for number in range(num_blocks))
        self.blocks = nn.Sequential(*blocks)
        self.final_norm = layer_norm(arrays, "final_norm")
        self.unembed = linear(arrays["unembed/kernel"], arrays["unembed/bias"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Outputs of `(batch, token, token width)`, in the same shape."""
        return self.unembed(self.final_norm(self.blocks(self.embed(tokens) + self.positions)))


class PlacedAttention(nn.Module):
    """Causal softmax attention of the language model: positions go to queries and keys alone."""

    def __init__(self, arrays: Arrays, name: str, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.output = (
            linear(arrays[f"{name}/{part}/kernel"], arrays[f"{name}/{part}/bias"])
            for part in ("query", "key", "value", "output")
        )

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Mixes the tokens of `(batch, token, width)`."""
        placed = x + positions
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (
            self.query(placed), self.key(placed), self.value(x)
        ))  # fmt: skip
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class AttentionOnly(nn.Module):
    """`llcjax.models.attention_only` from its parameters."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        num_blocks, heads = _num_blocks(arrays), int(arrays["num_heads"])
        self.embed = nn.Embedding.from_pretrained(torch.from_numpy(arrays["embed"]), freeze=False)
        self.positions = nn.Parameter(torch.from_numpy(arrays["positions"]))
        self.norms = nn.ModuleList(layer_norm(arrays, f"blocks/{number}/norm") for number in range(num_blocks))
        self.mixers = nn.ModuleList(
            PlacedAttention(arrays, f"blocks/{number}/attention", heads) for number in range(num_blocks)
        )
        self.final_norm = layer_norm(arrays, "final_norm")
        self.unembed = linear(arrays["unembed/kernel"], arrays["unembed/bias"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, token, vocabulary)` of token ids."""
        x = self.embed(tokens)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x), self.positions)
        return self.unembed(self.final_norm(x))


def _num_blocks(arrays: Arrays) -> int:
    return len({name.split("/")[1] for name in arrays if name.startswith("blocks/")})


def deep_linear(arrays: Arrays) -> nn.Module:
    """X W_1 ... W_L."""
    names = sorted(name for name in arrays if name.startswith("layer"))
    return nn.Sequential(*(linear(arrays[name]) for name in names))


def perceptron(arrays: Arrays) -> nn.Module:
    """One hidden layer of rectified linear units."""
    first, last = linear(arrays["w0"], arrays["b0"]), linear(arrays["w1"], arrays["b1"])
    return nn.Sequential(first, nn.ReLU(), last)


def linear(matrix: np.ndarray, bias: np.ndarray | None = None) -> nn.Linear:
    """X W + b."""
    layer = nn.Linear(*matrix.shape, bias=bias is not None)
    layer.weight.data = torch.from_numpy(matrix).T.contiguous()
    if bias is not None:
        layer.bias.data = torch.from_numpy(bias)
    return layer


def layer_norm(arrays: Arrays, name: str) -> nn.LayerNorm:
    """Layer norm over the last axis."""
    layer = nn.LayerNorm(arrays[f"{name}/scale"].shape, eps=1e-5)
    layer.weight.data = torch.from_numpy(arrays[f"{name}/scale"])
    layer.bias.data = torch.from_numpy(arrays[f"{name}/bias"])
    return layer


def half_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed over outputs, mean over examples."""
    return torch.mean(torch.sum((outputs - targets) ** 2, -1)) / 2


def regression_error(outputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Squared error of component 0 at the tokens of x, mean over positions."""
    error = functional.mse_loss(outputs[:, ::2, 0], targets, reduction=reduction)
    return error if reduction == "mean" else error.mean(-1)


def next_token_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each next token, mean over all; the last token of a sequence has none."""
    return functional.cross_entropy(outputs[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())


MODELS = {
    "deep_linear": (deep_linear, half_squared_error),
    "perceptron": (perceptron, functional.cross_entropy),
    "icl_transformer": (IclTransformer, regression_error),
    "attention_only": (AttentionOnly, next_token_error),
}


@functools.lru_cache(maxsize=1)  # the same module again, or a peer would compile it again
def network(name: str, file: str) -> Network:
    """A network on the device, from a file of arrays."""
    arrays = dict(np.load(file))
    build, loss = MODELS[name]
    host = [torch.from_numpy(arrays[part]) for part in ("inputs", "targets")]
    model, (inputs, targets) = build(arrays).to(DEVICE), (tensor.to(DEVICE) for tensor in host)
    torch.backends.cuda.matmul.allow_tf32 = False
    return Network(
        model, loss, TensorDataset(inputs, targets), TensorDataset(*host), _loss_at_start(model, loss, inputs, targets)
    )


@torch.no_grad()
def _loss_at_start(model: nn.Module, loss: Callable[..., torch.Tensor], *data: torch.Tensor) -> float:
    """Of all examples, of which only so many are evaluated at once as fit the device beside our side."""
    parts = zip(*(tensor.split(AT_ONCE) for tensor in data), strict=True)
    total = sum(loss(model(inputs), targets).item() * len(inputs) for inputs, targets in parts)
    return total / len(data[0])


def serve_torch(estimate: Callable[[Network, dict[str, Any]], dict[str, Any]], *packages: str) -> None:
    """Answers jobs with what `estimate(network, job)` returns, `llc` at least, and its seconds."""

    def solve(job: dict[str, Any]) -> dict[str, Any]:
        known = network(job["model"], job["file"])
        torch.backends.cuda.matmul.allow_tf32 = job["precision"] == "tf32"
        _synchronize()
        start = time.perf_counter()
        found = estimate(known, job)
        _synchronize()
        return {**found, "seconds": time.perf_counter() - start, "loss at start": known.loss_at_start}

    device = "gpu" if DEVICE.type == "cuda" else "cpu"
    serve(solve, [*packages, "torch"], device=device, threads=torch.get_num_threads())


def _synchronize() -> None:
    """Waits for the work that the device still has."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
