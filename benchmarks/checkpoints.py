"""Cost of a sweep against the number of checkpoints: the whole call to disk, and the estimates from what it stored."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import numpy as np

import llcjax
from benchmarks.harness import Measured, Options, Row, run, timed
from llcjax.bench import WORKLOADS
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig

NUM_CHAINS, NUM_DRAWS = 4, 100


def row(count: int, repeats: int) -> Row:
    """Medians for one number of checkpoints of the toy."""
    work = WORKLOADS["toy"]()
    stacked = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], count, 0), work.params)
    bank = CheckpointBank(params=stacked, steps=np.arange(count))
    config = SweepConfig(
        n_beta=10.0, localization=100.0, step_size=1e-6, num_chains=NUM_CHAINS, num_draws=NUM_DRAWS,
        batch_size=work.batch_size,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        places = iter(Path(folder) / str(index) for index in range(repeats + 1))
        last = Path(folder) / "0"
        whole = timed(
            lambda: llcjax.sweep(work.loss_fn, bank, work.data, config, out=next(places)).attrs, repeats=repeats
        )
        read = timed(lambda: llcjax.estimates(llcjax.open_sweep(last))["llc"].values, repeats=repeats)
        size = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    return {
        "checkpoints": count,
        "chain steps": count * NUM_CHAINS * NUM_DRAWS,
        "sweep (s)": whole.median,
        "chain-steps a second": count * NUM_CHAINS * NUM_DRAWS / whole.median,
        "estimates (s)": read.median,
        "estimates, a checkpoint (ms)": 1e3 * read.median / count,
        "store (MiB)": size / 2**20,
    }


def measure(options: Options) -> Measured:
    """10, 100 and 1,000 checkpoints."""
    counts = (2, 4) if options.toy else (10, 100, 1000)
    return Measured(
        title="Cost against the number of checkpoints, a toy of 340 parameters",
        rows=[row(count, 1 if options.toy else 3) for count in counts],
        settings={"chains": NUM_CHAINS, "draws": NUM_DRAWS},
    )


if __name__ == "__main__":
    run("checkpoints", measure)
