"""Seconds of sampling to a 5% standard error of the LLC, llcjax beside devinterp 1.3.2 on the same device.

Both run SGLD at the same setting, batch size, burn-in and draws. Chains are replicates: the standard deviation of their
LLCs says what one chain knows, and a mean over (that / 5% of the LLC)^2 chains has a 5% standard error. Their number,
times the seconds of a chain with its burn-in in a launch of as many chains as each side does best, is what the table
compares; it is warm on both sides, without compilation. devinterp is told the exact L(w*), so that both sides do the
same work, slices its batches from tensors on the device, and runs one chain after another, as it does.

The networks are teacher 6 of class 1k (2,332 parameters, 100,000 examples with unit noise), and the regression
transformer in the local regime of `experiments/regression`, at the end of its training: from the bank that the
environment variable LLCJAX_BENCH_BANK names, or the small one of the quick preset, trained first. llcjax subtracts
L(w*) on the batch of each draw, which it looks up among the losses of all examples; devinterp subtracts L(w*) on all
data. Neither is counted. On a GPU our activations on the transformer are float16, whose LLC `benchmarks.precision`
finds equal to that of exact products.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import scipy.stats

import llcjax
from benchmarks import paired_baseline
from benchmarks.harness import Measured, Options, Row, run
from benchmarks.peer import Peer, stored
from benchmarks.peers import device, network_of
from llcjax.bench import Workload
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig, as_dict
from llcjax.forecast import forecast
from llcjax.keys import as_key
from llcjax.reference import deep_linear_task, largest_curvature, random_deep_linear

WANTED = 0.05


class Case(NamedTuple):
    """A network, and the setting of both sides."""

    model: str
    """What the worker calls it."""
    arrays: Mapping[str, np.ndarray]
    """Its parameters and data, for the worker."""
    work: Workload
    config: SweepConfig
    """Of llcjax; devinterp has its own number of chains."""


def replicates() -> tuple[int, int]:
    """Chains of llcjax, in one launch, and of devinterp, one after another."""
    return (16, 16) if device() == "cpu" else (128, 128)


def deep_linear(toy: bool) -> Case:
    """At its teacher, labels with unit noise."""
    teacher = random_deep_linear(np.random.default_rng(6), "1k", aligned=True)
    task = deep_linear_task(teacher, noise_std=1.0)
    data = jax.tree.map(np.asarray, task.sample(as_key(0), 2000 if toy else 100_000))
    n_beta = 1000.0
    config = SweepConfig(
        n_beta=n_beta, localization=100.0, step_size=0.2 / (n_beta * largest_curvature(teacher)), batch_size=500,
        num_chains=replicates()[0], num_draws=20 if toy else 1000, num_burnin_steps=20 if toy else 300,
    )  # fmt: skip
    arrays = {**teacher.params, "inputs": data[0], "targets": data[1]}
    return Case("deep_linear", arrays, Workload(task.loss_fn, teacher.params, data, 500), config)


def regression(toy: bool) -> Case:
    """The transformer after its training, on 65,536 of its sequences."""
    trained = paired_baseline.transformer(toy)
    assert trained.experiment is not None
    config = dataclasses.replace(trained.at(trained.n_beta[0]), num_chains=replicates()[0])
    if os.environ.get(paired_baseline.BANK) and not toy:
        config = dataclasses.replace(config, localization=1500.0, step_size=5e-5)  # what `llcjax calibrate` recommends
    params = trained.bank.checkpoint(len(trained.bank) - 1)
    data = jax.tree.map(lambda leaf: leaf[: 2**16], trained.data)
    loss_fn = trained.loss_fn if device() == "cpu" else trained.loss_with("float16")
    work = Workload(loss_fn, params, data, config.batch_size or 0)
    model, arrays = network_of("regression", work)
    return Case(model, {**arrays, "num_heads": np.asarray(trained.experiment.model.num_heads)}, work, config)


CASES: Mapping[str, Callable[[bool], Case]] = {"deep_linear": deep_linear, "regression": regression}


def row(name: str, side: str, config: SweepConfig, llcs: np.ndarray, seconds: float) -> Row:
    """What the LLCs of the replicates and the seconds of a chain come to."""
    llc, spread = float(np.mean(llcs)), float(np.std(llcs, ddof=1))
    chains = (spread / (WANTED * abs(llc))) ** 2
    return {
        "network": name,
        "library": side,
        "replicates": len(llcs),
        "steps of a chain": config.num_burnin_steps + config.num_draws,
        "LLC": llc,
        "s.d. of a chain": spread,
        "time a chain step (us)": 1e6 * seconds / (config.num_burnin_steps + config.num_draws),
        "chains to 5%": chains,
        "seconds to 5%": chains * seconds,
    }


def rows(peer: Peer, name: str, case: Case, toy: bool) -> list[Row]:
    """Both sides on one network, and how much faster ours is."""
    work, config = case.work, case.config
    bank, steps = bank_of(work.params), config.num_burnin_steps + config.num_draws
    table = llcjax.estimates(llcjax.sweep(work.loss_fn, bank, work.data, config))
    seconds = steps * forecast(work.loss_fn, bank, work.data, config, repeats=1 if toy else 5).seconds_per_step
    with stored(case.arrays) as file:
        short = dataclasses.replace(config, num_draws=5, num_burnin_steps=0, num_chains=2)
        peer.answer(case.model, file, short, seed=0, exact_start=True)  # loads what it needs
        theirs_config = dataclasses.replace(config, num_chains=replicates()[1])
        answer = peer.answer(case.model, file, theirs_config, seed=1, exact_start=True)
    theirs = np.array(answer["llc of chains"])
    ours = row(name, "llcjax", config, table["llc_per_chain"].values.reshape(-1), seconds)
    found = []
    for one in (ours, row(name, "devinterp", config, theirs, answer["seconds"] / len(theirs))):
        ratio = one["seconds to 5%"] / ours["seconds to 5%"]
        # Of two variances, where they are not the same one.
        freedom = (one["replicates"] - 1, ours["replicates"] - 1)
        least, most = (1.0, 1.0) if one is ours else scipy.stats.f.ppf((0.025, 0.975), *freedom)
        found.append({**one, "llcjax is faster by": ratio, "from": ratio / most, "to": ratio / least})
    return found


def measure(options: Options) -> Measured:
    """Both networks; `--only` takes `deep_linear` or `regression`."""
    peer = Peer("devinterp_worker")
    try:
        cases = {name: make(options.toy) for name, make in CASES.items() if options.wants(name)}
        found = [one for name, case in cases.items() for one in rows(peer, name, case, options.toy)]
    finally:
        peer.close()
    return Measured(
        title="Seconds to a 5% standard error beside devinterp",
        rows=found,
        settings={"peer": peer.versions, **{name: as_dict(case.config) for name, case in cases.items()}},
        notes=[
            "From and to: the 95% interval of a ratio of two variances of so many replicates; times are taken as exact."
        ],
    )


if __name__ == "__main__":
    run("efficiency_peers", measure)
