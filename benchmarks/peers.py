"""Chain-steps a second of devinterp and of llcjax on the same small networks, 4 chains, one after the other in turn.

devinterp 1.3.2 runs its documented call in a process and environment of its own (`benchmarks/peer.py`), once with a
loader that slices tensors in memory and once with torch's DataLoader, as its documentation has it. llcjax runs a sweep
of the same model, data, batch size, chains and draws, with L(w*) evaluated once as devinterp does. Every time is that
of a whole call; before the first, both sides make a short one, which loads and compiles what they need.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from benchmarks.peer import Peer
from llcjax.bench import WORKLOADS, Workload
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.trees import num_params

NUM_DRAWS = {"toy": 2000, "mlp": 100}
NUM_CHAINS = 4


def config_of(work: Workload, num_draws: int) -> SweepConfig:
    """What both sides run."""
    return SweepConfig(
        n_beta=10.0, localization=100.0, step_size=1e-6, num_chains=NUM_CHAINS, num_draws=num_draws,
        batch_size=work.batch_size, baseline="dataset",
    )  # fmt: skip


def sides(peer: Peer, work: Workload) -> dict[str, Callable[[SweepConfig], float]]:
    """Seconds of a call, by what makes it."""
    inputs, labels = map(np.asarray, work.data)
    arrays = {**jax.tree.map(np.asarray, work.params), "inputs": inputs, "targets": labels.astype(np.int64)}
    bank = bank_of(work.params)

    def ours(config: SweepConfig) -> float:
        start = time.perf_counter()
        float(llcjax.estimates(llcjax.sweep(work.loss_fn, bank, work.data, config))["llc"].item())
        return time.perf_counter() - start

    return {
        "llcjax": ours,
        "devinterp, sliced": lambda config: peer.estimate("perceptron", arrays, config, seed=0)[1],
        "devinterp, DataLoader": lambda config: peer.estimate("perceptron", arrays, config, seed=0, sliced=False)[1],
    }


def rows(peer: Peer, name: str, turns: int, num_draws: int) -> list[Row]:
    """Rows of one workload: medians over the turns, and ratios taken turn by turn."""
    work = WORKLOADS[name]()
    calls, config = sides(peer, work), config_of(work, num_draws)
    for call in calls.values():
        call(config_of(work, min(num_draws, 100)))
    calls["llcjax"](config)  # another length is another number of chunks, not another program
    seconds = [{side: call(config) for side, call in calls.items()} for _ in range(turns)]
    return [
        {
            "workload": name,
            "parameters": num_params(work.params),
            "library": side,
            "chain-steps a second": NUM_CHAINS * num_draws / statistics.median(turn[side] for turn in seconds),
            "llcjax is faster by": statistics.median(turn[side] / turn["llcjax"] for turn in seconds),
        }
        for side in calls
    ]


def measure(options: Options) -> Measured:
    """Both perceptrons; `--only` takes `toy` or `mlp`."""
    peer = Peer("devinterp_worker")
    try:
        found = [
            row
            for name, num_draws in NUM_DRAWS.items()
            if options.wants(name)
            for row in rows(peer, name, 1 if options.toy else 5, 20 if options.toy else num_draws)
        ]
    finally:
        peer.close()
    return Measured(
        title="Chain-steps a second beside devinterp, 4 chains",
        rows=found,
        settings={"peer": peer.versions, "draws": NUM_DRAWS},
        notes=["Medians of five calls of each side, in turn; a ratio is the median of the five ratios of a turn."],
    )


if __name__ == "__main__":
    run("peers", measure)
