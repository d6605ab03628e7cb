"""Chain-steps a second of llcjax and of other libraries on the same networks: 4 chains, the same batches and steps.

Each peer runs in a process and environment of its own (`benchmarks/peer.py`), in the fastest way that its documentation
shows and with the data on the device, and where that differs also as its first example has it. llcjax runs a sweep of
the same model, data, batch size, chains and precision (float32; on a GPU TF32 products on all sides), with L(w*)
evaluated once, as the peers do. That all sides compute the same function is checked on L(w*).

Every time is that of a whole call, from the arrays on the device to the LLC, set-up included, with draws enough to
make that minor. Sides whose loop over the steps is compiled make more draws than those that loop in Python, since
their calls would be over too soon. The sides take turns; an untimed turn first loads and compiles what they need.

The language model runs on a GPU alone, in bfloat16 on our side; beside it stand devinterp as it is shipped, and a loop
in torch around a compiled gradient in bfloat16, which no library has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from benchmarks.peer import PYTHONS, Peer, PeerError, stored
from llcjax.bench import WORKLOADS, Workload
from llcjax.checkpoints import bank_of
from llcjax.config import Precision, SweepConfig
from llcjax.data import dataset_loss
from llcjax.models.attention_only import AttentionOnlyConfig
from llcjax.pipelines.regression import PRESETS
from llcjax.tasks.regression import tokens
from llcjax.trees import num_params

NUM_CHAINS = 4
NUM_DRAWS = {
    "cpu": {"toy": (1500, 20_000), "mlp": (150, 500), "regression": (16, 16)},
    "gpu": {"toy": (2000, 20_000), "mlp": (500, 10_000), "regression": (100, 2000), "language": (25, 200)},
}
"""Device -> workload -> draws of sides that loop over the steps in Python, and of those that compile the loop."""


class Ours(NamedTuple):
    """Another way in which we compute a network on a GPU."""

    name: str
    """What the table calls it."""
    workload: str
    precision: Precision
    num_chains: int
    """At once, which no peer can."""
    num_draws: int


OURS: Mapping[str, tuple[Ours, ...]] = {
    "regression": (
        Ours("128 chains at once, plain jax, TF32", "regression", "tf32", 128, 250),
        Ours("128 chains at once, kernels, TF32", "regression-pallas", "tf32", 128, 250),
        Ours("128 chains at once, kernels, float16 activations", "regression-pallas-fp16", "tf32", 128, 250),
        Ours("128 chains at once, kernels, bf16", "regression-pallas-bf16", "bf16", 128, 250),
    ),
    "language": (
        Ours("bf16 activations, kernels", "language-bf16", "bf16", NUM_CHAINS, 200),
        Ours("float32 activations, kernels, TF32", "language", "tf32", NUM_CHAINS, 50),
    ),
}
"""Workload -> those ways."""
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "devinterp_worker": {", sliced": {}, ", DataLoader": {"sliced": False}},
    "devinterp2_worker": {"": {}},
    "canonical_worker": {
        ", sliced": {"compile": "reduce-overhead"},
        ", sliced, compile=True": {"compile": True},
        ", as shipped": {"sliced": False, "compile": "reduce-overhead"},
    },
    "blackjax_worker": {"": {}},
}
"""Worker -> what follows its name in the table -> its options."""
VARIANTS_OF_LANGUAGE: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "devinterp_worker": {", sliced, float32": {"precision": "highest"}, ", sliced, TF32": {}},
    "torch_worker": {", a compiled loop in bf16": {}},
}
"""The same where a step is 102,400 tokens, so that torch's own speed counts and not that of its loops."""


class Side(NamedTuple):
    """A row to be."""

    name: str
    call: Callable[[SweepConfig], float]
    """Seconds of a call with a configuration."""
    config: SweepConfig

    def seconds(self) -> float:
        """Of one call."""
        return self.call(self.config)

    @property
    def steps(self) -> int:
        """Chain steps of a call."""
        return self.config.num_chains * self.config.num_draws


def device() -> str:
    """`cpu` or `gpu`."""
    return jax.default_backend()


def config_of(work: Workload, num_draws: int) -> SweepConfig:
    """What all sides run."""
    return SweepConfig(
        n_beta=10.0, localization=100.0, step_size=1e-6, num_chains=NUM_CHAINS, num_draws=num_draws,
        batch_size=work.batch_size, baseline="dataset", precision="highest" if device() == "cpu" else "tf32",
    )  # fmt: skip


def network_of(name: str, work: Workload) -> tuple[str, dict[str, np.ndarray]]:
    """What the workers call the model, and its arrays: parameters by their paths, `inputs` and `targets`."""
    leaves = jax.tree_util.tree_leaves_with_path(work.params)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    if name == "regression":
        heads = np.asarray(PRESETS["paper"].model.num_heads)
        inputs, targets = map(np.asarray, (tokens(work.data), work.data.y))
        return "icl_transformer", {**arrays, "num_heads": heads, "inputs": inputs, "targets": targets}
    if name == "language":
        heads, ids = np.asarray(AttentionOnlyConfig().num_heads), np.asarray(work.data).astype(np.int64)
        return "attention_only", {**arrays, "num_heads": heads, "inputs": ids, "targets": ids}
    inputs, labels = map(np.asarray, work.data)
    return "perceptron", {**arrays, "inputs": inputs, "targets": labels.astype(np.int64)}  # torch's kind of label


def loss_at_start(work: Workload) -> float:
    """L(w*) on all data in float32."""
    with jax.default_matmul_precision("highest"):
        return float(dataset_loss(work.loss_fn, work.params, work.data, work.batch_size).mean)


def our_call(work: Workload) -> Callable[[SweepConfig], float]:
    """Seconds of a sweep."""
    bank = bank_of(work.params)

    def seconds(config: SweepConfig) -> float:
        start = time.perf_counter()
        float(llcjax.estimates(llcjax.sweep(work.loss_fn, bank, work.data, config))["llc"].item())
        return time.perf_counter() - start

    return seconds


def peer_call(
    peer: Peer, model: str, file: str, wanted_loss: float, choices: Mapping[str, Any]
) -> Callable[[SweepConfig], float]:
    """Seconds of a peer's call, which raises ValueError where its network is not ours."""

    def seconds(config: SweepConfig) -> float:
        answer = peer.answer(model, file, config, seed=0, **choices)
        if abs(answer["loss at start"] / wanted_loss - 1) > 1e-5:
            raise ValueError(f"L(w*) of {peer_name(peer)} is {answer['loss at start']:.7g}, not {wanted_loss:.7g}.")
        return answer["seconds"]

    return seconds


def peer_name(peer: Peer) -> str:
    """The library, which a worker names first, and its version."""
    return " ".join(next(iter(peer.versions.items())))


def variants(name: str) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """How each worker is asked about a workload."""
    return VARIANTS_OF_LANGUAGE if name == "language" else VARIANTS


def sides(
    peers: Mapping[str, Peer], name: str, work: Workload, model: str, file: str, num_draws: tuple[int, int]
) -> list[Side]:
    """All that run a workload whose network is in a file, ours first."""
    loops, compiled = (config_of(work, draws) for draws in num_draws)
    wanted_loss = loss_at_start(work)
    # The language model is compared in its fastest way, which is its first one there.
    ours = [] if name == "language" else [Side("llcjax", our_call(work), compiled)]
    if device() == "gpu":
        ours += [_our_other_way(other, compiled) for other in OURS.get(name, ())]
    return ours + [
        Side(
            peer_name(peer) + variant,
            peer_call(peer, model, file, wanted_loss, choices),
            compiled if worker == "blackjax_worker" else loops,
        )
        for worker, peer in peers.items()
        for variant, choices in variants(name).get(worker, {}).items()
    ]


def _our_other_way(other: Ours, config: SweepConfig) -> Side:
    changed = dataclasses.replace(
        config, num_chains=other.num_chains, num_draws=other.num_draws, precision=other.precision
    )
    return Side(f"llcjax, {other.name}", our_call(WORKLOADS[other.workload]()), changed)


def warm(found: list[Side]) -> tuple[list[Side], list[str]]:
    """Makes a first call of each side; those that can, and a sentence for each that cannot."""
    able, sentences = [], []
    for side in found:
        try:
            side.seconds()
            able.append(side)
        except PeerError as error:
            sentences.append(f"{side.name} failed: {str(error).splitlines()[0]}")
    return able, sentences


def measured(
    peers: Mapping[str, Peer], name: str, turns: int, num_draws: tuple[int, int]
) -> tuple[list[Row], list[str]]:
    """Rows of one workload, medians over the turns and of ratios taken turn by turn; and sentences on them."""
    work = WORKLOADS[name]()
    model, arrays = network_of(name, work)
    with stored(arrays) as file:
        able, sentences = warm(sides(peers, name, work, model, file, num_draws))
        rates = np.array([[side.steps / side.seconds() for side in able] for _ in range(turns)])
    found = [
        {
            "workload": name,
            "parameters": num_params(work.params),
            "library": side.name,
            "draws": side.config.num_draws,
            "chain-steps a second": float(rate),
            "llcjax is faster by": float(ratio),
        }
        for side, rate, ratio in zip(able, np.median(rates, 0), np.median(rates[:, :1] / rates, 0), strict=True)
    ]
    return found, [f"{name}, {sentence}" for sentence in sentences]


def started(stack: contextlib.ExitStack, names: Sequence[str]) -> dict[str, Peer]:
    """The peers that some workloads ask and that there are environments for, by worker; they end with the stack.

    Raises:
        SystemExit: there is none, or one does not run on our device.
    """
    asked = {worker for name in names for worker in variants(name)}
    workers = [worker for worker, variable in PYTHONS.items() if worker in asked and os.environ.get(variable)]
    if not workers:
        named = ", ".join(dict.fromkeys(PYTHONS.values()))
        raise SystemExit(f"skipped: one of {named} must name a Python; see benchmarks/peer.py.")
    peers = {}
    for worker in workers:
        peers[worker] = peer = Peer(worker)
        stack.callback(peer.close)
        if peer.versions["device"] != device():
            raise SystemExit(f"{peer_name(peer)} would run on the {peer.versions['device']}, llcjax on the {device()}.")
    return peers


def measure(options: Options) -> Measured:
    """All workloads; `--only` takes some of `toy`, `mlp`, `regression` and `language`."""
    turns, rows = 1 if options.toy else 3, []
    notes = [f"Medians of the calls of {turns} turns; a ratio is the median of the ratios of a turn."]
    with contextlib.ExitStack() as stack:
        draws = {name: both for name, both in NUM_DRAWS[device()].items() if options.wants(name)}
        peers = started(stack, list(draws))
        for name, num_draws in draws.items():
            found, sentences = measured(peers, name, turns, (10, 10) if options.toy else num_draws)
            rows += found
            notes += sentences
    missing = [variable for variable in dict.fromkeys(PYTHONS.values()) if not os.environ.get(variable)]
    if missing:
        notes.append(f"Left out, as no Python is named for them: {', '.join(missing)}.")
    return Measured(
        title=f"Chain-steps a second beside other libraries, {NUM_CHAINS} chains",
        rows=rows,
        settings={"peers": [peer.versions for peer in peers.values()]},
        notes=notes,
    )


if __name__ == "__main__":
    run("peers", measure)
