"""What the paired baseline buys: L(w*) on the batch of each draw, against L(w*) once on all data, at equal draws.

Every chain is a replicate: it draws its own batches and noise, so the LLCs of single chains are independent estimates.
Both estimates of a chain come from the same draws,

    paired   n_beta * mean_t(L_t(w_t) - L_t(w*)),      dataset   n_beta * (mean_t L_t(w_t) - L(w*)),

L_t the loss on the batch of draw t. The factor is the standard deviation over chains of the second over that of the
first. A draw's own factor is larger: what is left after pairing is correlated from draw to draw, what pairing removes
is not. What pairing buys a second is the factor squared times the ratio of the times of a step, both measured here. A
step costs no more with it where L(w*) on the batch is looked up among the losses of all examples at w*, as it is here;
results before that hold a forward pass a draw.

The transformer is the paper's, from the bank that the environment variable LLCJAX_BENCH_BANK names, or the small one of
the quick preset, trained first. The temperature alone varies: localization / n_beta and step_size * n_beta are fixed,
which on a quadratic leaves the chain the same but for its scale.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float

import llcjax
from benchmarks.harness import Measured, Options, Row, run, timed
from llcjax.bank_import import import_bank
from llcjax.checkpoints import CheckpointBank, bank_of, check_fits
from llcjax.config import SweepConfig, as_dict
from llcjax.estimators import kept_draws
from llcjax.job import launch_args
from llcjax.keys import as_key
from llcjax.launch import plan_launches
from llcjax.models.icl_transformer import icl_transformer
from llcjax.models.sizes import Activations
from llcjax.pipelines.regression import PRESETS, RegressionExperiment
from llcjax.reference import deep_linear_task, random_deep_linear
from llcjax.sweep import make_job
from llcjax.tasks.regression import squared_error
from llcjax.train import train
from llcjax.trees import num_params
from llcjax.types import ApplyFn, InitFn, LossFn

BANK = "LLCJAX_BENCH_BANK"
REPLICATES = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model with its checkpoints, and settings at several temperatures."""

    model: str
    loss_fn: LossFn
    bank: CheckpointBank
    data: Any
    n_beta: tuple[float, ...]
    localization_over_n_beta: float
    step_size_times_n_beta: float
    config: SweepConfig
    """The rest: counts, batch size, precision."""
    experiment: RegressionExperiment | None = None
    """Of a transformer."""

    def loss_with(self, activations: Activations) -> LossFn:
        """The loss of the same transformer, whose activations are stored in another dtype."""
        assert self.experiment is not None
        return squared_error(_model(dataclasses.replace(self.experiment, activations=activations))[1])

    def at(self, n_beta: float, **changes: Any) -> SweepConfig:
        """The sweep at one temperature."""
        return dataclasses.replace(
            self.config,
            n_beta=n_beta,
            localization=self.localization_over_n_beta * n_beta,
            step_size=self.step_size_times_n_beta / n_beta,
            **changes,
        )


def deep_linear(toy: bool) -> Case:
    """A deep linear network of class 1k (arXiv 2308.12108, table 1) at its teacher, labels with unit noise.

    Without that noise L(w*) is 0 on every batch, and the two baselines are the same number.
    """
    teacher = random_deep_linear(np.random.default_rng(6), "1k", aligned=True)
    task = deep_linear_task(teacher, noise_std=1.0)
    config = SweepConfig(
        num_chains=REPLICATES, num_draws=1000, num_burnin_steps=300, batch_size=500, draws_per_chunk=50
    )
    return Case(
        model=f"deep linear, {teacher.num_params:,} parameters",
        loss_fn=task.loss_fn,
        bank=bank_of(teacher.params),
        data=task.sample(as_key(0), 1000 if toy else 100_000),
        n_beta=(100.0, 1000.0, 10_000.0),
        localization_over_n_beta=10.0,
        step_size_times_n_beta=2e-3,
        config=_toy(config) if toy else config,
    )


def transformer(toy: bool) -> Case:
    """The regression transformer at two checkpoints: in-context learning just learnt, and the end of training."""
    folder = os.environ.get(BANK)
    if toy or folder is None:
        return _small_transformer(toy)
    config = SweepConfig(
        num_chains=REPLICATES, num_draws=250, num_burnin_steps=100, batch_size=1024, precision="tf32",
        draws_per_chunk=25,
    )  # fmt: skip
    exact = dataclasses.replace(PRESETS["paper"], activations="float32")
    return _transformer(exact, import_bank(folder), (10_101, 500_000), 5e-5, config)


def _small_transformer(toy: bool) -> Case:
    experiment = PRESETS["quick"]
    config = SweepConfig(num_chains=REPLICATES, num_draws=300, num_burnin_steps=100, batch_size=64, draws_per_chunk=25)
    if toy:
        model = dataclasses.replace(experiment.model, num_layers=1, num_heads=1, model_width=8, mlp_width=8)
        training = dataclasses.replace(experiment.train, num_steps=10, batch_size=8)
        experiment = dataclasses.replace(experiment, model=model, train=training, num_examples=256)
        config = _toy(config)
    init, apply = _model(experiment)
    (bank,) = train(init, squared_error(apply), experiment.task.sample, experiment.train, progress=False)
    last = experiment.train.num_steps
    return _transformer(experiment, bank, (last // 5, last), 1.5e-4, config)


def _transformer(
    experiment: RegressionExperiment,
    bank: CheckpointBank,
    steps: tuple[int, int],
    step_size: float,
    config: SweepConfig,
) -> Case:
    """The checkpoints nearest to `steps`; localization 1000 and `step_size` at the n_beta of 66.67."""
    init, apply = _model(experiment)
    check_fits(bank, jax.eval_shape(init, as_key(0)))
    bank = bank.at_steps([bank.nearest(step) for step in steps])
    return Case(
        model=f"transformer, {num_params(bank.checkpoint(0)):,} parameters",
        loss_fn=squared_error(apply),
        experiment=experiment,
        bank=bank,
        data=experiment.task.sample(as_key(experiment.data_seed), experiment.num_examples),
        n_beta=(66.67, 300.0, 1000.0),
        localization_over_n_beta=1000.0 / 66.67,
        step_size_times_n_beta=step_size * 66.67,
        config=config,
    )


def _model(experiment: RegressionExperiment) -> tuple[InitFn, ApplyFn]:
    task = experiment.task
    return icl_transformer(
        experiment.model, task.num_tokens, task.token_width, experiment.kernels, experiment.activations
    )


def _toy(config: SweepConfig) -> SweepConfig:
    return dataclasses.replace(
        config, num_chains=8, num_draws=20, num_burnin_steps=10, batch_size=16, draws_per_chunk=10
    )


CASES: Mapping[str, Callable[[bool], Case]] = {"deep_linear": deep_linear, "transformer": transformer}


@dataclasses.dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step of one chain, the two programs timed in turn."""

    paired: float
    dataset: float
    ratio: float
    """Median of dataset / paired over the turns."""


def step_times(case: Case, turns: int) -> StepTimes:
    """Times a chunk of both programs, one after the other, so that what else the machine does meets both."""
    chunks = [_chunk(case, "paired"), _chunk(case, "dataset")]
    for run_chunk, _ in chunks:
        timed(run_chunk, repeats=1)
    seconds = [
        [timed(run_chunk, repeats=1, warmups=0).median / steps for run_chunk, steps in chunks] for _ in range(turns)
    ]
    paired, dataset = zip(*seconds, strict=True)
    ratios = [after / before for before, after in seconds]
    return StepTimes(statistics.median(paired), statistics.median(dataset), statistics.median(ratios))


def _chunk(case: Case, baseline: str) -> tuple[Callable[[], Any], int]:
    """A call that runs the next chunk of draws of a full launch, and how many chain-steps that is."""
    job = make_job(case.loss_fn, case.bank, case.data, case.at(case.n_beta[0], baseline=baseline))
    plan, program = plan_launches(job, np.arange(job.num_groups)), job.program()
    states, *rest = launch_args(job, program, np.arange(plan.groups_per_launch), plan.runs_per_launch)

    def advance() -> Any:
        nonlocal states
        states, recorded = program.advance(states, *rest)
        return recorded

    return advance, plan.runs_per_launch * plan.draws_per_chunk


def dataset_losses(case: Case) -> Float[np.ndarray, " checkpoint"]:
    """L(w*) over all data, of each checkpoint."""
    job = make_job(case.loss_fn, case.bank, case.data, case.at(case.n_beta[0], baseline="dataset"))
    program = job.program()
    arrays = program.put(job.source.arrays)
    return np.array([program.dataset_loss(case.bank.checkpoint(i), arrays).mean for i in range(len(case.bank))])


def factor(dataset: Float[np.ndarray, " chain"], paired: Float[np.ndarray, " chain"]) -> tuple[float, float, float]:
    """Ratio of the standard deviations over chains, and its 95% interval from 4000 bootstraps over chains."""
    drawn = np.random.default_rng(0).integers(len(paired), size=(4000, len(paired)))
    ratios = dataset[drawn].std(1, ddof=1) / paired[drawn].std(1, ddof=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(dataset.std(ddof=1) / paired.std(ddof=1)), float(low), float(high)


def traces(facts: xr.Dataset, exact: Float[np.ndarray, " checkpoint"]) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the LLC with the paired and with the dataset baseline, each (checkpoint, chain, draw), burnt in."""
    kept = facts.isel(setting=0, draw=kept_draws(facts))
    n_beta, loss = float(kept["n_beta"]), kept["loss"].values.astype(np.float64)
    return n_beta * (loss - kept["baseline_loss"].values), n_beta * (loss - exact[:, None, None])


def rows(case: Case, turns: int) -> Iterator[Row]:
    """One row a checkpoint and temperature."""
    times, exact = step_times(case, turns), dataset_losses(case)
    for n_beta in case.n_beta:
        facts = llcjax.sweep(case.loss_fn, case.bank, case.data, case.at(n_beta))
        table = llcjax.estimates(facts).isel(setting=0)
        for index, (step, paired, dataset) in enumerate(zip(case.bank.steps, *traces(facts, exact), strict=True)):
            ratio, low, high = factor(dataset.mean(1), paired.mean(1))
            yield {
                "model": case.model,
                "checkpoint (step)": int(step),
                "n_beta": n_beta,
                "replicates": len(paired),
                "LLC": float(table["llc"].values[index]),
                "verdict": str(table["verdict"].values[index]),
                "s.d. paired": float(paired.mean(1).std(ddof=1)),
                "s.d. dataset": float(dataset.mean(1).std(ddof=1)),
                "factor": ratio,
                "factor from": low,
                "factor to": high,
                "factor of one draw": float(dataset.std() / paired.std()),
                "step paired (us)": 1e6 * times.paired,
                "step dataset (us)": 1e6 * times.dataset,
                "variance cut a second": ratio**2 * times.ratio,
                "cut from": low**2 * times.ratio,
                "cut to": high**2 * times.ratio,
            }


def measure(options: Options) -> Measured:
    """Both models; `--only` takes `deep_linear` or `transformer`."""
    cases = [build(options.toy) for name, build in CASES.items() if options.wants(name)]
    found = [row for case in cases for row in rows(case, 2 if options.toy else 5)]
    return Measured(
        title="Standard deviation of an estimate with the dataset baseline over that with the paired one",
        rows=found,
        settings={case.model: {"steps": case.bank.steps.tolist(), **_settings(case)} for case in cases},
        notes=notes(found),
    )


def _settings(case: Case) -> dict[str, Any]:
    return {str(n_beta): as_dict(case.at(n_beta)) for n_beta in case.n_beta}


def notes(found: list[Row]) -> list[str]:
    """What the rows say about the factor being 1 at least, 2 somewhere, and about its price."""
    factors = [row["factor"] for row in found]
    below = sum(row["factor to"] < 1 for row in found)
    unclear = sum(row["factor from"] <= 1 <= row["factor to"] for row in found)
    dear = sum(row["variance cut a second"] < 1 for row in found)
    return [
        f"The factor is {min(factors):.3g} to {max(factors):.3g}. Its 95% interval (bootstrap over chains) lies below "
        f"1 in {below} of {len(found)} rows, and holds 1 in {unclear}.",
        "Variance cut a second: factor^2 x time of a step with the dataset baseline / with the paired one, with the "
        f"interval of the factor. It is below 1, so that the pair costs more than it buys, in {dear} of {len(found)} "
        "rows.",
    ]


if __name__ == "__main__":
    run("paired_baseline", measure)
