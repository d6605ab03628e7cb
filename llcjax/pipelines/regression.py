"""The in-context regression experiment: the steps that it chains, each skipped where it is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
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
from llcjax.metrics.attention import head_means
from llcjax.models.icl_transformer import icl_transformer
from llcjax.output_folder import only_run, writing_to
from llcjax.pipelines.regression_analysis import Analyses, analyse, selected_steps
from llcjax.pipelines.regression_config import GRIDS, PRESETS, RegressionExperiment, experiment_from
from llcjax.pipelines.regression_parts import MAIN, PARTS, part_experiment
from llcjax.pipelines.run_folder import check_all_but, claim, timed
from llcjax.provenance import provenance
from llcjax.report import write_report
from llcjax.report.calibration import write_calibration
from llcjax.rescale import relative
from llcjax.stages import Stages, llc_stages
from llcjax.store import is_complete, open_sweep
from llcjax.sweep import check_data, check_finite, sweep
from llcjax.tasks.regression import squared_error
from llcjax.train import finish_training, train
from llcjax.types import ApplyFn, InitFn, LossFn, Params

Say = Callable[[str], None]


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
        models: Path | str | None = None,
    ) -> None:
        """Claims the folder; to calibrate, its subfolder `calibration` alone, so that any sweep may follow in it.

        Args:
            experiment: its configuration.
            out: folder of the run.
            command: the command line that makes it again.
            progress: shows progress bars.
            say: what is told of finished steps.
            calibrating: claims for a calibration.
            models: folder of another run of the same task, model and training, whose models and their measures are
                taken; None trains in `out`.

        Raises:
            ValueError: the folder holds another config.
        """
        self.experiment, self.out, self.command = experiment, Path(out), command
        self.progress, self.say = progress, say
        self.models = self.out if models is None else Path(models)
        self.init, self.apply, self.loss = _model(experiment)
        # All that can be refused is refused before the folder is claimed and before anything is trained.
        check_data(DataSource((), None, experiment.num_examples), experiment.sweep)
        self._imported = None if experiment.bank is None else import_bank(experiment.bank)
        self._loaded: dict[int, CheckpointBank] | None = None
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
            if not self._is_trained() or self._is_torn():
                folder = self.models / "banks"
                with only_run(folder), writing_to(folder):
                    self._train(folder)

        processes.first_alone(train_missing)
        return self._held_banks()

    def _is_trained(self) -> bool:
        config = self.experiment.train
        seeds = range(config.seed, config.seed + config.num_seeds)
        return self._imported is not None or all(is_bank(self.models / "banks" / f"seed_{seed}") for seed in seeds)

    def _is_torn(self) -> bool:
        """Whether models that were trained here cannot be trusted any more, which is said."""
        try:
            self._held_banks()
        except ValueError as error:
            self.say(f"{error} They are trained again.")
            return True
        return False

    def _held_banks(self) -> dict[int, CheckpointBank]:
        experiment, folder = self.experiment, self.models / "banks"
        if self._imported is not None:
            return {experiment.sweep_seeds[0]: self._imported}
        if self._loaded is None:
            self._loaded = {seed: load_bank(folder / f"seed_{seed}") for seed in experiment.sweep_seeds}
        return self._loaded

    def num_checkpoints(self, seed: int) -> int | None:
        """How many checkpoints of a seed are swept; None for all."""
        experiment = self.experiment
        first = seed == experiment.sweep_seeds[0]
        return experiment.num_checkpoints if first else experiment.num_further_checkpoints

    def sweeps(self) -> dict[int, xr.Dataset]:
        """The sweep of each seed, run or resumed where it is not complete."""
        experiment = self.experiment
        data = experiment.task.sample(as_key(experiment.data_seed), experiment.num_examples)
        results = {}
        for seed, bank in self.banks().items():
            path = self._sweep_path(seed)
            done = is_complete(path)
            loss, swept, mask = _coordinates(experiment, self.loss, bank, self.num_checkpoints(seed))
            with contextlib.nullcontext() if done else self._timed(f"sweep of seed {seed}"):
                results[seed] = sweep(
                    loss,
                    swept,
                    data,
                    experiment.sweep,
                    out=path,
                    mask=mask,
                    chance=experiment.task.chance,
                    attrs={"command": self.command, "rerun": json.dumps(self._recipe(seed))},
                    progress=self.progress and not done,
                )
            if not done and processes.is_first():
                self.say(f"sweep of seed {seed} -> {path}")
        return results

    def _recipe(self, seed: int) -> dict[str, Any]:
        """What `llcjax rerun` makes the sweep of a seed from; `models` as seen from the store."""
        one = dataclasses.replace(
            self.experiment, sweep_seeds=(seed,), num_checkpoints=self.num_checkpoints(seed), further=()
        )
        if one.bank is not None:
            one = dataclasses.replace(one, bank=str(Path(one.bank).absolute()))
        models = os.path.relpath(self.models, self._sweep_path(seed))
        return {"pipeline": "regression", "options": as_dict(one), "models": models}

    def finished(self) -> Iterator[tuple[int, CheckpointBank, xr.Dataset]]:
        """Seed, checkpoints and sweep of every seed whose sweep is complete."""
        if self._is_trained():
            for seed, bank in self._held_banks().items():
                if is_complete(self._sweep_path(seed)):
                    yield seed, bank, open_sweep(self._sweep_path(seed))

    @contextlib.contextmanager
    def _timed(self, step: str) -> Generator[None]:
        with timed(self.out, step) if processes.is_first() else contextlib.nullcontext():
            yield

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

    def analyses(self, seed: int, bank: CheckpointBank) -> Analyses:
        """What is measured on one seed beside the LLC, measured where it is not there yet."""
        # Kernels have no Hessians, and nothing is rounded where speed does not matter.
        _, apply, loss = _model(dataclasses.replace(self.experiment, kernels="xla", activations="float32"))
        return analyse(
            self.experiment, bank, (apply, loss), self.models, f"seed_{seed}", self.num_checkpoints(seed),
            timing=lambda: self._timed(f"metrics of seed {seed}"),
        )  # fmt: skip

    def report(self) -> dict[int, tuple[Path, Stages | None, xr.Dataset]]:
        """Estimates, stages and report of each swept seed; the first one's report is the folder's."""
        if not self._is_trained():
            raise ValueError(f"{self.out} holds no finished training; run `llcjax run` on it first.")
        results = {}
        for position, (seed, bank) in enumerate(self._held_banks().items()):
            facts = open_sweep(self._sweep_path(seed))
            folder = self.out if position == 0 else self.out / f"seed_{seed}"
            results[seed] = self._report(folder, seed, facts, self.analyses(seed, bank))
        return results

    def _report(
        self, folder: Path, seed: int, facts: xr.Dataset, measured: Analyses
    ) -> tuple[Path, Stages | None, xr.Dataset]:
        table, metrics = estimates(facts), measured.behaviour
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
        parts = (
            facts.attrs["fingerprint"],
            done,
            [one.attrs["fingerprint"] for one in measured if one is not None],
            provenance(),
            notes,
            links,
        )
        identity = fingerprint(*parts)
        stamp = folder / "report.fingerprint"
        if not (path.exists() and stamp.exists() and stamp.read_text() == identity):
            write_report(
                folder,
                title=f"In-context linear regression, seed {seed}",
                sweep=facts,
                estimates=table,
                metrics=metrics,
                further={
                    "structure": measured.structure,
                    "attention": head_means(measured.attention),
                },
                paths=measured.paths,
                curvature=measured.curvature,
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
        task, config = self.experiment.task, self.experiment.train
        work = self.models / "training"
        facts = {"task": as_dict(task), "model": as_dict(self.experiment.model)}
        with self._timed("training"):
            banks = train(
                self.init, self.loss, task.sample, config, work_dir=work, progress=self.progress, provenance=facts
            )
        for bank in banks:
            save_bank(bank, folder / f"seed_{bank.config['model_seed']}")
        finish_training(work)
        losses = ", ".join(f"{bank.metrics['train_loss'][-1]:.3f}" for bank in banks)
        self.say(f"training: final training loss {losses} -> {folder}")

    def _sweep_path(self, seed: int) -> Path:
        return self.out / "sweeps" / f"seed_{seed}"


def _model(experiment: RegressionExperiment) -> tuple[InitFn, ApplyFn, LossFn]:
    task = experiment.task
    init, apply = icl_transformer(
        experiment.model, task.num_tokens, task.token_width, experiment.kernels, experiment.activations
    )
    return init, apply, squared_error(apply)


def _coordinates(
    experiment: RegressionExperiment, loss: LossFn, bank: CheckpointBank, count: int | None
) -> tuple[LossFn, CheckpointBank, Params | None]:
    """Loss, checkpoints and mask of a sweep: the selected checkpoints, in the coordinates asked for."""
    some = bank.at_steps(selected_steps(bank.steps, count))
    return relative(loss, some) if experiment.coordinates == "relative" else (loss, some, None)


def forecast_sweep(experiment: RegressionExperiment, out: Path | str) -> Forecast:
    """What the sweep of one seed will need; where the checkpoints are not trained yet, untrained ones stand in.

    Raises:
        ValueError: bad input, as of the sweep itself.
    """
    init, _, weights_loss = _model(experiment)
    trained = Path(out) / "banks" / f"seed_{experiment.sweep_seeds[0]}"
    if experiment.bank is not None:
        bank = import_bank(experiment.bank)
    elif is_bank(trained):
        bank = load_bank(trained)
    else:
        steps = experiment.train.snapshot_steps()
        bank = CheckpointBank(params=trees.stack([init(as_key(0))] * len(steps)), steps=steps)
    data = experiment.task.sample(as_key(experiment.data_seed), experiment.num_examples)
    loss, swept, _ = _coordinates(experiment, weights_loss, bank, experiment.num_checkpoints)
    return forecast(loss, swept, data, experiment.sweep)


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


def all_parts(run: RegressionRun, only: Sequence[str] = ()) -> dict[str, RegressionRun]:
    """The parts of an experiment in their order, each a run in a folder of its own.

    Args:
        run: the first part, which trains.
        only: names of parts; none = all.

    Raises:
        ValueError: a name that no part has.
    """
    names = (MAIN, *run.experiment.further)
    for name in only:
        if name not in names:
            raise ValueError(f"part={name!r} is not in this experiment; choose from {', '.join(names)}.")
    runs = {}
    for name in names:
        if only and name not in only:
            continue
        if name == MAIN:
            runs[name] = run
            continue
        if PARTS[name].trains and run.experiment.bank is not None:
            run.say(f"part {name} is left out: it trains models of its own, and bank takes them from elsewhere.")
            continue
        runs[name] = RegressionRun(
            part_experiment(run.experiment, name),
            run.out / "parts" / name,
            command=run.command,
            progress=run.progress,
            say=run.say,
            models=None if PARTS[name].trains else run.models,
        )
    return runs


__all__ = [
    "GRIDS",
    "PRESETS",
    "RegressionExperiment",
    "RegressionRun",
    "all_parts",
    "experiment_from",
    "forecast_sweep",
]
