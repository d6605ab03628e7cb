"""devinterp 1.3.2 beside llcjax on the same random deep linear networks: error and time at equal chain steps.

The 40 aligned teachers of class 1k of `benchmarks.deep_linear`. Both libraries run SGLD on the same 100,000 noiseless
examples with batches of 500 and the same n_beta = n / ln(n), localization, step size, 4 chains, 1,000 steps of burn-in
and 1,000 draws; network by network in turn, devinterp in a process and environment of its own (`benchmarks/peer.py`).
Beside them llcjax's SGNHT on the population loss with the same number of chain steps, as `llcjax verify` runs it.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import scipy.stats

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from benchmarks.peer import Peer
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.keys import as_key
from llcjax.reference import DeepLinearCase, deep_linear_task, largest_curvature, random_deep_linear

METHODS = ("devinterp SGLD", "llcjax SGLD", "llcjax SGNHT, population loss")


def shared_config(case: DeepLinearCase, toy: bool) -> SweepConfig:
    """SGLD as both libraries run it; steps inflate the stiffest variance by 2.5%, before the noise of the batches."""
    return SweepConfig(
        n_beta=case.n_beta, localization=10.0, step_size=0.1 / (case.n_beta * largest_curvature(case)), num_chains=4,
        num_draws=20 if toy else 1000, num_burnin_steps=20 if toy else 1000, batch_size=case.batch_size,
        baseline="dataset",
    )  # fmt: skip


def thermostat_config(case: DeepLinearCase, toy: bool) -> SweepConfig:
    """The chains of `llcjax verify`, as many steps as SGLD makes."""
    n_beta = 1e5
    return SweepConfig(
        sampler="sgnht", sampler_options={"diffusion": 0.01}, n_beta=n_beta, localization=10.0,
        step_size=0.1 / (n_beta * largest_curvature(case)), num_chains=4, num_draws=20 if toy else 1000,
        num_burnin_steps=20 if toy else 1000, batch_size=None,
    )  # fmt: skip


def ours(loss_fn: Any, case: DeepLinearCase, data: Any, config: SweepConfig) -> tuple[float, float]:
    """LLC and seconds."""
    start = time.perf_counter()
    table = llcjax.estimates(llcjax.sweep(loss_fn, bank_of(case.params), data, config))
    return float(table["llc"].item()), time.perf_counter() - start


def teacher_rows(peer: Peer, seed: int, toy: bool) -> list[Row]:
    """Three estimates of one teacher."""
    case = random_deep_linear(np.random.default_rng(seed), "1k", aligned=True)
    task = deep_linear_task(case)
    data = jax.tree.map(np.asarray, task.sample(as_key(seed), 2000 if toy else case.num_examples))
    config, thermostat = shared_config(case, toy), thermostat_config(case, toy)
    found = (
        peer.estimate("deep_linear", {**case.params, "inputs": data[0], "targets": data[1]}, config, seed=seed),
        ours(task.loss_fn, case, data, config),
        ours(task.population_loss, case, None, thermostat),
    )
    steps = config.num_chains * (config.num_burnin_steps + config.num_draws)
    return [
        {"method": method, "seed": seed, "lambda": case.llc, "LLC": llc, "error (%)": 100 * (llc / case.llc - 1),
         "time (s)": seconds, "chain steps": steps}
        for method, (llc, seconds) in zip(METHODS, found, strict=True)
    ]  # fmt: skip


def summary_row(rows: list[Row], reference: list[Row]) -> Row:
    """What a method comes to; `reference` are the rows of the peer."""
    error = np.abs([row["error (%)"] for row in rows])
    seconds, other = ([row["time (s)"] for row in some] for some in (rows, reference))
    truth, found = ([row[name] for row in rows] for name in ("lambda", "LLC"))
    return {
        "method": rows[0]["method"],
        "networks": len(rows),
        "median error (%)": float(np.median(error)),
        "90th percentile (%)": float(np.quantile(error, 0.9)),
        "mean signed (%)": float(np.mean([row["error (%)"] for row in rows])),
        "rank correlation": float(scipy.stats.spearmanr(truth, found).statistic),
        "time in all (s)": float(np.sum(seconds)),
        "chain-steps a second": float(sum(row["chain steps"] for row in rows) / np.sum(seconds)),
        "median ratio of times, devinterp / this": float(np.median(np.divide(other, seconds))),
    }


def measure(options: Options) -> Measured:
    """All three methods on every teacher."""
    peer = Peer("devinterp_worker")
    try:
        details = []
        teacher_rows(peer, 0, True)  # what a first call loads, for both
        for seed in range(2 if options.toy else 40):
            details += teacher_rows(peer, seed, options.toy)
            print(*(f"{row['method']}: {row['error (%)']:+.1f}% {row['time (s)']:.1f} s" for row in details[-3:]),
                  sep="; ", flush=True)  # fmt: skip
    finally:
        peer.close()
    by_method = [[row for row in details if row["method"] == method] for method in METHODS]
    return Measured(
        title="devinterp and llcjax on random deep linear networks of class 1k, at equal chain steps",
        rows=[summary_row(rows, by_method[0]) for rows in by_method],
        details=details,
        settings={"peer": peer.versions, "class": "1k", "aligned": True},
        notes=["Times hold everything from the call to the number, compilation included."],
    )


if __name__ == "__main__":
    run("deep_linear_peers", measure)
