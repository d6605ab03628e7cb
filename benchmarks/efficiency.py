"""Seconds of sampling to a 5% standard error of the LLC, by sampler and batch size, on a deep linear network.

The teacher is number 6 of class 1k (2,332 parameters), aligned, on 100,000 examples with unit noise. 16 chains are 16
replicates: the standard deviation of their LLCs gives what one chain of this length knows, and as errors fall with the
square root of the steps, the chain steps to a 5% error; a step of a chain is timed in a full launch. The error against
lambda beside it is what no number of steps takes away: the bias of the sampler at its step size, and of n_beta.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.forecast import forecast
from llcjax.keys import as_key
from llcjax.reference import deep_linear_task, largest_curvature, random_deep_linear

WANTED = 0.05
SAMPLERS: dict[str, dict[str, Any]] = {
    "sgld, batch 500": {"sampler": "sgld", "batch_size": 500},
    "sgld, batch 50": {"sampler": "sgld", "batch_size": 50},
    "rmsprop_sgld, batch 500": {"sampler": "rmsprop_sgld", "batch_size": 500},
    "sgnht, batch 500": {"sampler": "sgnht", "batch_size": 500, "sampler_options": {"diffusion": 0.02}},
}
"""Case -> changes of the configuration."""


def row(name: str, toy: bool) -> Row:
    """One sampler."""
    case = random_deep_linear(np.random.default_rng(6), "1k", aligned=True)
    task = deep_linear_task(case, noise_std=1.0)
    data = task.sample(as_key(0), 2000 if toy else 100_000)
    n_beta = 1000.0
    config = SweepConfig(
        n_beta=n_beta, localization=100.0, step_size=0.2 / (n_beta * largest_curvature(case)), num_chains=16,
        num_draws=20 if toy else 1000, num_burnin_steps=20 if toy else 1000,
    )  # fmt: skip
    config = dataclasses.replace(config, **SAMPLERS[name])
    if config.sampler == "rmsprop_sgld":
        # Its steps are those of a parameter whose gradients have unit size; here they are far smaller than `stability`.
        config = dataclasses.replace(config, step_size=0.1 * config.step_size[0])
    bank = bank_of(case.params)
    table = llcjax.estimates(llcjax.sweep(task.loss_fn, bank, data, config)).isel(checkpoint=0, setting=0)
    step = forecast(task.loss_fn, bank, data, config, repeats=1 if toy else 5).seconds_per_step
    llc, spread = float(table["llc"]), float(np.std(table["llc_per_chain"].values, ddof=1))
    steps = config.num_draws * (spread / (WANTED * abs(llc))) ** 2
    return {
        "sampler": name,
        "LLC": llc,
        "lambda": case.llc,
        "error against lambda (%)": 100 * (llc / case.llc - 1),
        "LLC less heating": llc - float(table["heating"]) if "heating" in table else None,
        "verdict": str(table["verdict"].item()),
        "s.d. of a chain of 1,000 draws": spread,
        "effective draws a second": float(table["ess_bulk"]) / (config.num_chains * config.num_draws * step),
        "time a chain step (us)": 1e6 * step,
        "chain steps to 5%": steps,
        "seconds to 5%, after burn-in": steps * step,
    }


def measure(options: Options) -> Measured:
    """Every sampler; `--only` takes cases by name."""
    names = [name for name in SAMPLERS if options.wants(name)]
    return Measured(
        title="Seconds to a 5% standard error on a deep linear network of 2,332 parameters",
        rows=[row(name, options.toy) for name in names[: 1 if options.toy else None]],
        settings={"n_beta": 1000.0, "localization": 100.0, "chains": 16},
    )


if __name__ == "__main__":
    run("efficiency", measure)
