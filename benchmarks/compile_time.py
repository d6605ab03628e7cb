"""Seconds until a sweep's program runs for the first time: tracing and lowering, and XLA's compilation.

`--only` takes workloads. No compilation cache; one number of chains, as the width hardly matters.
"""

from __future__ import annotations

import statistics
import time

import jax
import numpy as np

from benchmarks.harness import Measured, Options, Row, run
from llcjax import _compat
from llcjax.bench import WORKLOADS, suitable_workloads
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.job import launch_args
from llcjax.sweep import make_job

NUM_CHAINS = 8


def row(name: str, repeats: int) -> Row:
    """Medians of one workload."""
    work = WORKLOADS[name]()
    config = SweepConfig(
        n_beta=10.0, localization=100.0, step_size=1e-6, num_chains=NUM_CHAINS, num_draws=100,
        batch_size=work.batch_size,
    )  # fmt: skip
    job = make_job(work.loss_fn, bank_of(work.params), work.data, config)
    program = job.program()
    args = launch_args(job, program, np.zeros(1, np.int64), NUM_CHAINS)
    lowering, compiling = [], []
    for _ in range(repeats):
        jax.clear_caches()
        start = time.perf_counter()
        lowered = program.advance_fn.lower(*args)
        lowering.append(time.perf_counter() - start)
        start = time.perf_counter()
        lowered.compile(_compat.compiler_options(lowered))
        compiling.append(time.perf_counter() - start)
    return {
        "workload": name,
        "leaves": len(jax.tree.leaves(work.params)),
        "trace and lower (s)": statistics.median(lowering),
        "compile (s)": statistics.median(compiling),
    }


def measure(options: Options) -> Measured:
    """Every workload."""
    names = [name for name in (("toy",) if options.toy else suitable_workloads()) if options.wants(name)]
    return Measured(
        title="Time to the first step",
        rows=[row(name, 1 if options.toy else 3) for name in names],
        settings={"chains": NUM_CHAINS},
    )


if __name__ == "__main__":
    run("compile_time", measure)
