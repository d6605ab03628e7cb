"""The in-context regression experiment: its whole configuration, its presets, and the steps that it chains."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from llcjax import processes, trees
from llcjax.calibrate import Calibration, calibrate
from llcjax.checkpoints import CheckpointBank, check_fits, import_bank, is_bank, load_bank, save_bank
from llcjax.config import SweepConfig, as_dict, fingerprint
from llcjax.curve_verdict import loss_copy
from llcjax.data import DataSource
from llcjax.estimators import estimates
from llcjax.forecast import Forecast, forecast
from llcjax.keys import as_key
from llcjax.metrics.regression import regression_metrics
from llcjax.models.icl_transformer import TransformerConfig, icl_transformer
from llcjax.models.kernels import Kernels
from llcjax.models.sizes import Activations
from llcjax.output_folder import only_run, writing_to
from llcjax.pipelines.run_folder import check_all_but, claim
from llcjax.provenance import provenance
from llcjax.report import write_report
from llcjax.report.calibration import write_calibration
from llcjax.stages import Stages, llc_stages
from llcjax.store import is_complete, load_dataset, open_sweep, save_dataset
from llcjax.sweep import check_data, check_finite, sweep
from llcjax.tasks.regression import RegressionTask, squared_error
from llcjax.train import TrainConfig, finish_training, train
from llcjax.types import ApplyFn, InitFn, LossFn

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegressionExperiment:
    """In-context linear regression: train, sweep, metrics, stages, report."""

    task: RegressionTask = dataclasses.field(default_factory=RegressionTask)
    model: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    sweep: SweepConfig = dataclasses.field(default_factory=SweepConfig)
    num_examples: int = 2**20
    """Sequences of the fixed set on which the LLC is estimated (n)."""
    data_seed: int = 7
    """Seed of that set."""
    num_test_sequences: int = 8192
    """Fresh sequences for the metrics."""
    sweep_seeds: tuple[int, ...] = (0,)
    """Model seeds whose checkpoints are swept."""
    kernels: Kernels = "xla"
    """How attention is computed: xla, or pallas for a kernel of its own (on a GPU)."""
    activations: Activations = "float32"
    """How activations of the model are stored: float32, or bfloat16, which halves memory traffic and rounds."""
    bank: str | None = None
    """Folder of checkpoints to sweep instead of training: a bank, per-step orbax folders, .npz or .safetensors."""

    def __post_init__(self) -> None:
        """Checks sizes, and that the swept seeds are trained.

        Raises:
            ValueError: a value out of range.
        """
        if min(self.num_examples, self.num_test_sequences) < 2:
            raise ValueError("num_examples and num_test_sequences must be at least 2.")
        trained = range(self.train.seed, self.train.seed + self.train.num_seeds)
        missing = [seed for seed in self.sweep_seeds if seed not in trained]
        if self.bank is None and (missing or not self.sweep_seeds):
            raise ValueError(
                f"sweep_seeds={self.sweep_seeds} must name at least one of the trained seeds {list(trained)}."
            )


PRESETS: dict[str, RegressionExperiment] = {
    # The phenomenon in small, for 2 cores: loss falls from 2.1 to 0.75, in-context learning sets in near step 200.
    # A few minutes, compilation included.
    "quick": RegressionExperiment(
        task=RegressionTask(dimension=2),
        model=TransformerConfig(num_heads=2, model_width=32, mlp_width=32),
        train=TrainConfig(
            num_steps=3000,
            batch_size=128,
            learning_rate=5e-3,
            num_log_checkpoints=20,
            num_linear_checkpoints=13,
        ),
        sweep=SweepConfig(
            n_beta=(66.67,),
            localization=(1000.0,),
            step_size=(1.5e-4,),
            num_chains=4,
            num_draws=150,
            num_burnin_steps=50,
            batch_size=64,
            per_position=True,
            draws_per_chunk=50,
        ),
        num_examples=2**14,
        num_test_sequences=2048,
    ),
    # The paper (arXiv 2402.02364): 5 seeds x 500,000 steps, 190 checkpoints, its published SGLD setting on seed 0.
    # Expect a final test loss of 1.73 to 1.76 a seed (ridge optimum 1.653). The README states what it costs.
    "paper": RegressionExperiment(
        train=TrainConfig(num_seeds=5),
        sweep=SweepConfig(
            n_beta=(66.67,),
            localization=(6.667,),
            step_size=(3e-4,),
            num_chains=10,
            num_draws=5000,
            batch_size=1024,
            baseline="dataset",
            per_position=True,
            precision="tf32",
        ),
    ),
}

GRIDS: dict[str, SweepConfig] = {
    # 9 settings x 5 checkpoints x 4 chains x 200 steps: about as much as the sweep of the preset.
    "quick": dataclasses.replace(
        PRESETS["quick"].sweep,
        localization=(300.0, 1000.0, 3000.0),
        step_size=(5e-5, 1.5e-4, 5e-4),
        num_draws=120,
        num_burnin_steps=80,
        per_position=False,
    ),
    # Around n_beta 67, localization 1000, whose chains stay local where those of the published setting do not.
    # 24 settings x 5 checkpoints x 4 chains x 1,000 steps = 480,000 chain steps.
    "paper": dataclasses.replace(
        PRESETS["paper"].sweep,
        n_beta=(66.67, 300.0),
        localization=(1000.0, 1500.0, 2000.0, 3000.0),
        step_size=(2.5e-5, 5e-5, 1e-4),
        num_chains=4,
        num_draws=700,
        num_burnin_steps=300,
        baseline="paired",
        per_position=False,
    ),
}
"""The grid of `llcjax calibrate` for each preset."""


class RegressionRun:
    """An experiment in its folder. Every step is skipped where its output is there and matches the config."""

    def __init__(
        self,
        experiment: RegressionExperiment,
        out: Path | str,
        *,
        command: str = "",
        progress: bool = True,
        say: Say = print,
        calibrating: bool = False,
    ) -> None:
        """Claims the folder; to calibrate, its subfolder `calibration` alone, so that any sweep may follow in it.

        Raises:
            ValueError: the folder holds another config.
        """
        self.experiment, self.out, self.command = experiment, Path(out), command
        self.progress, self.say = progress, say
        self.init, self.apply, self.loss = _model(experiment)
        # All that can be refused is refused before the folder is claimed and before anything is trained.
        check_data(DataSource((), None, experiment.num_examples), experiment.sweep)
        self._imported = None if experiment.bank is None else import_bank(experiment.bank)
        if self._imported is not None:
            check_fits(self._imported, jax.eval_shape(self.init, as_key(0)))
            check_finite(self._imported)
        if calibrating:
            check_all_but("sweep", self.out, as_dict(experiment), _completed)
        claimed = self.out / "calibration" if calibrating else self.out
        processes.first_alone(lambda: claim(claimed, as_dict(experiment), _completed))

    def banks(self) -> dict[int, CheckpointBank]:
        """The banks of the seeds to sweep, trained where they are not there yet."""

        def train_missing() -> None:
            if not self._is_trained():
                folder = self.out / "banks"
                with only_run(folder), writing_to(folder):
                    self._train(folder)

        processes.first_alone(train_missing)
        return self._held_banks()

    def _is_trained(self) -> bool:
        config = self.experiment.train
        seeds = range(config.seed, config.seed + config.num_seeds)
        return self._imported is not None or all(is_bank(self.out / "banks" / f"seed_{seed}") for seed in seeds)

    def _held_banks(self) -> dict[int, CheckpointBank]:
        experiment, folder = self.experiment, self.out / "banks"
        if self._imported is not None:
            return {experiment.sweep_seeds[0]: self._imported}
        return {seed: load_bank(folder / f"seed_{seed}") for seed in experiment.sweep_seeds}

    def sweeps(self) -> dict[int, xr.Dataset]:
        """The sweep of each seed, run or resumed where it is not complete."""
        experiment = self.experiment
        data = experiment.task.sample(as_key(experiment.data_seed), experiment.num_examples)
        results = {}
        for seed, bank in self.banks().items():
            path = self._sweep_path(seed)
            started = time.monotonic()
            results[seed] = sweep(
                self.loss,
                bank,
                data,
                experiment.sweep,
                out=path,
                chance=experiment.task.chance,
                attrs={"command": self.command},
                progress=self.progress and not is_complete(path),
            )
            if (seconds := time.monotonic() - started) > 5 and processes.is_first():
                self.say(f"sweep of seed {seed}: {seconds:.0f} s -> {path}")
        return results

    def calibrate(
        self,
        *,
        checkpoints: Sequence[int] | None = None,
        second: SweepConfig | None = None,
        target_acceptance: float | None = None,
    ) -> tuple[Calibration, Path]:
        """Judges the settings of `experiment.sweep` on the first swept seed, and writes page and recommendation.

        Args:
            checkpoints: training steps to look at; None spreads five over the loss curve.
            second: the grid of a second sampler.
            target_acceptance: MALA acceptance that a warm-up brings SGLD to; None takes its step sizes as given.

        Returns:
            The calibration, and the path of its page.
        """
        experiment, folder = self.experiment, self.out / "calibration"
        result = calibrate(
            self.loss,
            self.banks()[experiment.sweep_seeds[0]],
            experiment.task.sample(as_key(experiment.data_seed), experiment.num_examples),
            [grid for grid in (experiment.sweep, second) if grid is not None],
            checkpoints=checkpoints,
            chance=experiment.task.chance,
            target_acceptance=target_acceptance,
            out=folder,
            progress=self.progress,
        )
        title = f"Calibration, in-context linear regression, seed {experiment.sweep_seeds[0]}"
        return result, write_calibration(folder, result, title=title, command=self.command)

    def metrics(self, seed: int, bank: CheckpointBank) -> xr.Dataset:
        """The metrics of one seed, measured where they are not there yet."""
        path = self.out / "metrics" / f"seed_{seed}"
        count = self.experiment.num_test_sequences
        identity = fingerprint(bank.fingerprint(), as_dict(self.experiment.task), count)
        known = load_dataset(path)
        if known is not None and known.attrs.get("fingerprint") == identity:
            return known
        measured = regression_metrics(self.apply, bank, self.experiment.task, num_sequences=count)
        measured.attrs["fingerprint"] = identity
        save_dataset(measured, path)
        return measured

    def report(self) -> dict[int, tuple[Path, Stages | None, xr.Dataset]]:
        """Estimates, stages and report of each swept seed; the first one's report is the folder's."""
        if not self._is_trained():
            raise ValueError(f"{self.out} holds no finished training; run `llcjax run` on it first.")
        results = {}
        for position, (seed, bank) in enumerate(self._held_banks().items()):
            facts = open_sweep(self._sweep_path(seed))
            folder = self.out if position == 0 else self.out / f"seed_{seed}"
            results[seed] = self._report(folder, seed, facts, self.metrics(seed, bank))
        return results

    def _report(
        self, folder: Path, seed: int, facts: xr.Dataset, metrics: xr.Dataset
    ) -> tuple[Path, Stages | None, xr.Dataset]:
        table = estimates(facts)
        copied = loss_copy(table.isel(setting=0))
        notes = [] if copied is None else [copied.sentence]
        try:
            stages = llc_stages(table, metrics["test_loss"].sel(checkpoint=table["checkpoint"]).values)
        except ValueError as error:
            stages = None
            notes.append(f"No stages: {error}")
        path = folder / "report.html"
        done = facts["num_draws_done"].values.tolist()
        links = _calibration_link(self.out, folder)
        parts = (facts.attrs["fingerprint"], done, metrics.attrs["fingerprint"], provenance(), notes, links)
        identity = fingerprint(*parts)
        stamp = folder / "report.fingerprint"
        if not (path.exists() and stamp.exists() and stamp.read_text() == identity):
            write_report(
                folder,
                title=f"In-context linear regression, seed {seed}",
                sweep=facts,
                estimates=table,
                metrics=metrics,
                stages=stages,
                config=as_dict(self.experiment),
                provenance={
                    **json.loads(facts.attrs["provenance"]),
                    "sweep_seconds": round(facts.attrs["wall_seconds"]),
                },
                command=self.command,
                notes=notes,
                links=links,
            )
            stamp.write_text(identity)
        return path, stages, table

    def _train(self, folder: Path) -> None:
        started = time.monotonic()
        task, config = self.experiment.task, self.experiment.train
        work = self.out / "training"
        facts = {"task": as_dict(task), "model": as_dict(self.experiment.model)}
        banks = train(
            self.init, self.loss, task.sample, config, work_dir=work, progress=self.progress, provenance=facts
        )
        for bank in banks:
            save_bank(bank, folder / f"seed_{bank.config['model_seed']}")
        finish_training(work)
        seconds = time.monotonic() - started
        losses = ", ".join(f"{bank.metrics['train_loss'][-1]:.3f}" for bank in banks)
        self.say(f"training: {seconds:.0f} s, final training loss {losses} -> {folder}")

    def _sweep_path(self, seed: int) -> Path:
        return self.out / "sweeps" / f"seed_{seed}"


def _model(experiment: RegressionExperiment) -> tuple[InitFn, ApplyFn, LossFn]:
    task = experiment.task
    init, apply = icl_transformer(
        experiment.model, task.num_tokens, task.token_width, experiment.kernels, experiment.activations
    )
    return init, apply, squared_error(apply)


def forecast_sweep(experiment: RegressionExperiment, out: Path | str) -> Forecast:
    """What the sweep of one seed will need; where the checkpoints are not trained yet, untrained ones stand in.

    Raises:
        ValueError: bad input, as of the sweep itself.
    """
    init, _, loss = _model(experiment)
    trained = Path(out) / "banks" / f"seed_{experiment.sweep_seeds[0]}"
    if experiment.bank is not None:
        bank = import_bank(experiment.bank)
    elif is_bank(trained):
        bank = load_bank(trained)
    else:
        steps = experiment.train.snapshot_steps()
        bank = CheckpointBank(params=trees.stack([init(as_key(0))] * len(steps)), steps=steps)
    data = experiment.task.sample(as_key(experiment.data_seed), experiment.num_examples)
    return forecast(loss, bank, data, experiment.sweep)


def _calibration_link(out: Path, folder: Path) -> dict[str, str]:
    """The page of the calibration in the folder of the run, seen from the folder of a report."""
    page = out / "calibration" / "calibration.html"
    return {"how the setting was chosen": os.path.relpath(page, folder)} if page.exists() else {}


def _completed(held: dict[str, Any]) -> dict[str, Any]:
    """A config of an earlier version with the defaults of fields that came since, which change nothing."""
    try:
        return as_dict(experiment_from(held))
    except (ValueError, AttributeError):
        return held


def experiment_from(config: dict[str, Any]) -> RegressionExperiment:
    """Rebuilds an experiment from the config of its folder.

    Raises:
        ValueError: a field that this version does not know.
    """
    parts: dict[str, Any] = {
        "task": RegressionTask,
        "model": TransformerConfig,
        "train": TrainConfig,
        "sweep": SweepConfig,
    }
    try:
        fields: dict[str, Any] = {
            name: parts[name](**value) if name in parts else value for name, value in config.items()
        }
        fields["sweep_seeds"] = tuple(fields["sweep_seeds"])
        return RegressionExperiment(**fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"the config is of another version of llcjax ({error}); run the experiment again.") from error


__all__ = [
    "GRIDS",
    "PRESETS",
    "RegressionExperiment",
    "RegressionRun",
    "experiment_from",
    "forecast_sweep",
]
