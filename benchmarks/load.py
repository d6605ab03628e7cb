"""Large sweeps on a small machine: reading a store of 10^8 draws to its report, sweeping and planning many runs.

The store is synthetic: a curve with stages, chains that are autoregressive and share part of their noise along the
curve, as common keys make them. Reading includes the figures and tables of the report.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import scipy.signal

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from llcjax.bench import WORKLOADS
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig, as_dict
from llcjax.provenance import provenance
from llcjax.report import write_report
from llcjax.sensitivity import HYPERPARAMETERS
from llcjax.store import SweepStore
from llcjax.trees import num_params

N_BETA = 30.0
MEMORY = 10.0
"""Autoregressive time of the chains, in draws."""
LAST_STEP = 500_000


class Size(NamedTuple):
    """How large a sweep is."""

    checkpoints: int
    chains: int
    draws: int


def synthetic_store(path: Path, size: Size, seed: int = 0) -> None:
    """Writes the store of a sweep that was never run, a checkpoint at a time.

    Args:
        path: folder of the store.
        size: of the sweep.
        seed: of the noise.
    """
    config = SweepConfig(
        n_beta=N_BETA, localization=300.0, step_size=1e-4, num_chains=size.chains, num_draws=size.draws, batch_size=64
    )
    steps = np.unique(np.geomspace(1, LAST_STEP, size.checkpoints * 4).astype(int))
    steps = steps[np.linspace(0, len(steps) - 1, size.checkpoints).astype(int)]
    block = -(-size.draws // -(-size.draws // config.draws_per_chunk))
    store = SweepStore.create(
        path,
        coords={
            "checkpoint": (("checkpoint",), steps),
            "setting": (("setting",), np.arange(1)),
            "chain": (("chain",), np.arange(size.chains)),
            "draw": (("draw",), np.arange(size.draws)),
            **{name: (("setting",), np.array(getattr(config, name))) for name in HYPERPARAMETERS},
        },
        attrs={
            "config": json.dumps(as_dict(config)), "bank": "{}", "provenance": json.dumps(provenance()),
            "fingerprint": "synthetic", "num_burnin_steps": 0, "num_params": 1000, "wall_seconds": 0.0, "chance": 2.1,
        },
    )  # fmt: skip
    groups, dims = (size.checkpoints, 1), ("checkpoint", "setting", "chain", "draw")
    names = ("loss", "baseline_loss", "distance", "gradient_norm")
    for name in names:
        shape, chunks = (*groups, size.chains, size.draws), (1, 1, size.chains, block)
        store.allocate(name, dims, shape, chunks, "float32", float("nan"))
    store.allocate("first_nonfinite_step", dims[:3], (*groups, size.chains), (1, 1, size.chains), "int32", -1)
    store.allocate("num_draws_done", dims[:2], groups, (1, 1), "int32", 0)
    store = store.publish()
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((size.chains, size.draws))
    progress = np.log1p(steps) / np.log1p(steps[-1])
    llc = 4 + 30 / (1 + np.exp(-(progress - 0.35) / 0.03)) + 40 / (1 + np.exp(-(progress - 0.7) / 0.03))
    for index, level in enumerate(llc):
        noise = 0.8 * shared + 0.6 * rng.standard_normal(shared.shape)
        excess = level / N_BETA * (1 + 0.3 * scipy.signal.lfilter([1], [1, -np.exp(-1 / MEMORY)], noise, axis=1))
        baseline = 2 - 1.5 * progress[index] + 0.1 * rng.standard_normal(shared.shape)
        values = (baseline + excess, baseline, 0.1 + 0.01 * noise, 1e-3 * np.exp(0.1 * noise))
        for name, trace in zip(names, values, strict=True):
            store.write(name, (index, 0), trace.astype(np.float32))
    store.write("first_nonfinite_step", (slice(None),), np.full((*groups, size.chains), -1, np.int32))
    store.write("num_draws_done", (slice(None),), np.full(groups, size.draws, np.int32))


def reading(size: Size) -> Iterator[Row]:
    """Seconds and peak memory from the store of a sweep to its report, step by step."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic_store(Path(folder) / "store", size)
        clock = _Clock(size)
        facts = llcjax.open_sweep(Path(folder) / "store")
        yield clock.row("open")
        table = llcjax.estimates(facts)
        yield clock.row("estimates and verdicts")
        stages = llcjax.llc_stages(table)
        yield clock.row("stages")
        write_report(
            Path(folder) / "report", title="A large sweep", sweep=facts, estimates=table, metrics=None, stages=stages,
            config={}, provenance={}, command="python -m benchmarks.load",
        )  # fmt: skip
        yield clock.row("report")
        yield clock.total()


class _Clock:
    """Seconds since the last row, and since the start."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.start = self.last = time.perf_counter()

    def row(self, what: str) -> Row:
        before, self.last = self.last, time.perf_counter()
        return self._row(what, self.last - before)

    def total(self) -> Row:
        return self._row("all of it", time.perf_counter() - self.start)

    def _row(self, what: str, seconds: float) -> Row:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"what": what, **self.size._asdict(), "seconds": seconds, "peak memory (GiB)": peak}


def sweeping(size: Size) -> Iterator[Row]:
    """Seconds of a sweep of the toy to a store on disk."""
    work = WORKLOADS["toy"]()
    stacked = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], size.checkpoints, 0), work.params)
    bank = CheckpointBank(params=stacked, steps=np.arange(size.checkpoints))
    config = SweepConfig(
        n_beta=10.0, localization=100.0, step_size=1e-6, num_chains=size.chains, num_draws=size.draws,
        batch_size=work.batch_size,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock(size)
        llcjax.sweep(work.loss_fn, bank, work.data, config, out=Path(folder) / "store")
        yield clock.row(f"sweep, a toy of {num_params(work.params)} parameters")


def planning(size: Size) -> Iterator[Row]:
    """Seconds of `llcjax sweep regression --dry-run`, from the start of its process to the end."""
    words = {
        "train.num-steps": LAST_STEP,
        "train.num-log-checkpoints": size.checkpoints,
        "train.num-linear-checkpoints": size.checkpoints,
        "num-checkpoints": size.checkpoints,
        "sweep.num-chains": size.chains,
        "sweep.num-draws": size.draws,
    }
    options = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock(size)
        command = [sys.executable, "-m", "llcjax", "sweep", "regression", "--dry-run", "--out", folder, *options]
        subprocess.run(command, check=True, capture_output=True)
        yield {**clock.row("plan"), "peak memory (GiB)": None}


CASES: dict[str, tuple[Callable[[Size], Iterator[Row]], tuple[Size, ...], Size]] = {
    "read": (reading, (Size(1000, 20, 5000),), Size(8, 4, 40)),
    "sweep": (sweeping, (Size(1000, 8, 200),), Size(4, 2, 10)),
    "plan": (planning, (Size(10, 10, 200), Size(1000, 100, 200)), Size(8, 2, 10)),
}
"""name -> (rows of a size, sizes, toy size)."""


def measure(options: Options) -> Measured:
    """All cases that are asked for."""
    rows = [
        row
        for name, (rows_of, sizes, toy) in CASES.items()
        if options.wants(name)
        for size in ((toy,) if options.toy else sizes)
        for row in rows_of(size)
    ]
    return Measured(
        title=f"Large sweeps on {os.cpu_count()} cores",
        rows=rows,
        settings={"n_beta": N_BETA, "autoregressive time (draws)": MEMORY},
        notes=["Peak memory is that of the process so far. A plan holds compilation and the start of its process."],
    )


if __name__ == "__main__":
    run("load", measure)
