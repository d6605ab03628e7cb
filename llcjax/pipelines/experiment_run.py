"""An experiment in its folder: training, analyses, sweep and report, each skipped where it is finished.

What is particular to an experiment are the functions of its model, its data, what it measures beside the LLC and its
tables; `llcjax.pipelines.regression` and `llcjax.pipelines.language` give them.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self

import jax
import xarray as xr

from llcjax import processes, trees
from llcjax.bank_import import import_bank
from llcjax.calibrate import Calibration, calibrate
from llcjax.checkpoints import (
    CheckpointBank,
    SavedBank,
    check_fits,
    is_bank,
    load_bank,
    open_bank,
    save_bank,
)
from llcjax.config import SweepConfig, as_dict
from llcjax.data import DataSource
from llcjax.forecast import Forecast, forecast
from llcjax.keys import as_key
from llcjax.output_folder import only_run, writing_to
from llcjax.pipelines.experiment_config import PIPELINE, Experiment, Part, part_experiment, rebuilt
from llcjax.pipelines.experiment_report import SeedReport, report_seed
from llcjax.pipelines.run_folder import check_all_but, claim, timed
from llcjax.report.calibration import write_calibration
from llcjax.rescale import relative
from llcjax.store import is_complete, open_sweep
from llcjax.sweep import check_data, check_finite, sweep
from llcjax.train import finish_training, train
from llcjax.types import ApplyFn, Batch, InitFn, LossFn, Params

Say = Callable[[str], None]
Purpose = Literal["run", "calibrate", "forecast"]


class Functions(NamedTuple):
    """A model and its loss."""

    init: InitFn
    apply: ApplyFn
    loss: LossFn


class Training(NamedTuple):
    """What is trained, and where its batches come from."""

    loss: LossFn
    """Not always that of the sweep, whose kernels are for many chains at once."""
    sample: Callable[..., Batch]
    data: Any
    """Arrays that `sample` draws from, or None."""
    facts: dict[str, Any]
    """What tells this training from others, kept in its banks."""


class ExperimentRun(abc.ABC, Generic[Experiment]):
    """An experiment in its folder. Every step is skipped where its output is there and matches the config."""

    name: ClassVar[str]
    """Of the experiment on the command line."""
    title: ClassVar[str]
    chance_name: ClassVar[str] = "zero predictor"
    config_type: ClassVar[Any]
    """Class of its configuration."""
    main: ClassVar[str]
    """Name of the first part."""
    part_kinds: ClassVar[Mapping[str, Part]]

    def __init__(
        self,
        experiment: Experiment,
        out: Path | str,
        *,
        command: str = "",
        progress: bool = True,
        say: Say = print,
        purpose: Purpose = "run",
        models: Path | str | None = None,
        loaded: dict[int, CheckpointBank] | None = None,
    ) -> None:
        """Claims the folder; to calibrate, its subfolder `calibration` alone, so that any sweep may follow in it.

        Args:
            experiment: its configuration.
            out: folder of the run.
            command: the command line that makes it again.
            progress: shows progress bars.
            say: what is told of finished steps.
            purpose: what the folder is claimed for; nothing is claimed for a forecast.
            models: folder of another run of the same task, model and training, whose models and their measures are
                taken; None trains in `out`.
            loaded: banks by seed that such a run holds, which may be gigabytes; both add what they load.

        Raises:
            ValueError: the folder holds another config.
        """
        self.experiment, self.out, self.command = experiment, Path(out), command
        self.progress, self.say = progress, say
        self.models = self.out if models is None else Path(models)
        self.init, self.apply, self.loss = self.functions()
        # All that can be refused is refused before the folder is claimed and before anything is trained.
        check_data(DataSource((), None, self.num_examples), experiment.sweep)
        self._loaded = {} if loaded is None else loaded
        self._parts: dict[str, Self] = {self.main: self}
        if experiment.bank is not None and experiment.sweep_seeds[0] not in self._loaded:
            imported = self._loaded[experiment.sweep_seeds[0]] = import_bank(experiment.bank)
            check_fits(imported, jax.eval_shape(self.init, as_key(0)))
            check_finite(imported)
            self._compare(imported)
        if purpose == "calibrate":
            check_all_but("sweep", self.out, self._config(), self._completed)
        if purpose != "forecast":
            claimed = self.out / "calibration" if purpose == "calibrate" else self.out
            processes.first_alone(lambda: claim(claimed, self._config(), self._completed))

    def _compare(self, imported: CheckpointBank) -> None:
        """Says where a bank from elsewhere was trained on something else than this experiment trains on."""
        here = self.training().facts
        other = [name for name, fact in here.items() if name in imported.config and imported.config[name] != fact]
        if other and processes.is_first():
            self.say(
                f"bank={self.experiment.bank!r} was trained with other {' and '.join(other)} than this experiment has; "
                "unless that is meant, give it those of its training."
            )

    # What is particular to an experiment.

    @abc.abstractmethod
    def functions(self) -> Functions:
        """The model and its loss, as they are trained and swept."""

    @abc.abstractmethod
    def training(self) -> Training:
        """What is trained, and where its batches come from."""

    @property
    @abc.abstractmethod
    def num_examples(self) -> int:
        """Examples on which the LLC is estimated."""

    @abc.abstractmethod
    def data(self) -> Any:
        """The arrays on which the LLC is estimated."""

    @property
    @abc.abstractmethod
    def chance(self) -> float:
        """Loss of a trivial predictor."""

    @abc.abstractmethod
    def analyses(self, seed: int, bank: CheckpointBank | SavedBank) -> Any:
        """A named tuple of what is measured on one seed beside the LLC, measured where it is not there yet.

        `behaviour`, among them, has the variable `test_loss`.
        """

    @abc.abstractmethod
    def shown(self, measured: Any) -> dict[str, Any]:
        """Arguments of `write_report` beside `metrics` that show the analyses."""

    @abc.abstractmethod
    def tables(self) -> tuple[Path, list[dict[str, Any]]]:
        """Writes the tables over all parts; returns their folder and which targets are met."""

    # What all experiments share.

    @classmethod
    def experiment_from(cls, config: dict[str, Any]) -> Any:
        """Rebuilds an experiment from the config of its folder.

        Raises:
            ValueError: a field that this version does not know.
        """
        return rebuilt(cls.config_type, config)

    @classmethod
    def _completed(cls, held: dict[str, Any]) -> dict[str, Any]:
        """A config of an earlier version with the defaults of fields that came since, which change nothing."""
        kind = held.get(PIPELINE, "regression")
        try:
            return {PIPELINE: kind, **as_dict(cls.experiment_from(held))} if kind == cls.name else held
        except (ValueError, AttributeError):
            return held

    def _config(self) -> dict[str, Any]:
        return {PIPELINE: self.name, **as_dict(self.experiment)}

    def parts(self, only: Sequence[str] = ()) -> dict[str, Self]:
        """The parts of the experiment in their order, each a run in a folder of its own.

        Args:
            only: names of parts; none = all.

        Raises:
            ValueError: a name that no part has.
        """
        names = (self.main, *self.experiment.further)
        for name in only:
            if name not in names:
                raise ValueError(f"part={name!r} is not in this experiment; choose from {', '.join(names)}.")
        runs = {}
        for name in (name for name in names if not only or name in only):
            if name != self.main and self.part_kinds[name].trains and self.experiment.bank is not None:
                self.say(f"part {name} is left out: it trains models of its own, and bank takes them from elsewhere.")
                continue
            if name not in self._parts:
                self._parts[name] = self._part(name)
            runs[name] = self._parts[name]
        return runs

    def _part(self, name: str) -> Self:
        own_models = self.part_kinds[name].trains
        return type(self)(
            part_experiment(self.experiment, self.part_kinds, name),
            self.out / "parts" / name,
            command=self.command,
            progress=self.progress,
            say=self.say,
            models=None if own_models else self.models,
            loaded=None if own_models else self._loaded,
        )

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
        return self.experiment.bank is not None or all(
            is_bank(self.models / "banks" / f"seed_{seed}") for seed in seeds
        )

    def _is_torn(self) -> bool:
        """Whether models that were trained here cannot be trusted any more, which is said."""
        try:
            self._held_banks()
        except ValueError as error:
            self.say(f"{error} They are trained again.")
            return True
        return False

    @property
    def _seeds(self) -> tuple[int, ...]:
        """Seeds to sweep; a bank from elsewhere stands for the first."""
        seeds = self.experiment.sweep_seeds
        return seeds if self.experiment.bank is None else seeds[:1]

    def _known_bank(self, seed: int) -> CheckpointBank | SavedBank:
        """Checkpoints of a seed whose parameters are read when something must still be measured on them."""
        return self._loaded[seed] if seed in self._loaded else open_bank(self.models / "banks" / f"seed_{seed}")

    def _held_banks(self) -> dict[int, CheckpointBank]:
        for seed in self._seeds:
            self._loaded[seed] = self._known_bank(seed).load()
        return {seed: self._loaded[seed] for seed in self._seeds}

    def _train(self, folder: Path) -> None:
        work, given = self.models / "training", self.training()
        self._loaded.clear()
        with self._timed("training"):
            banks = train(
                self.init, given.loss, given.sample, self.experiment.train, data=given.data, work_dir=work,
                progress=self.progress, provenance=given.facts,
            )  # fmt: skip
        for bank in banks:
            save_bank(bank, folder / f"seed_{bank.config['model_seed']}")
        finish_training(work)
        losses = ", ".join(f"{bank.metrics['train_loss'][-1]:.3f}" for bank in banks)
        self.say(f"training: final training loss {losses} -> {folder}")

    def sweeps(self) -> dict[int, xr.Dataset]:
        """The sweep of each seed, run or resumed where it is not complete."""
        data, results = self.data(), {}
        for seed, bank in self.banks().items():
            path = self._sweep_path(seed)
            done = is_complete(path)
            loss, swept, mask = self._swept(bank, seed)
            with contextlib.nullcontext() if done else self._timed(f"sweep of seed {seed}"):
                results[seed] = sweep(
                    loss,
                    swept,
                    data,
                    self.experiment.sweep,
                    out=path,
                    mask=mask,
                    chance=self.chance,
                    attrs={"command": self.command, "rerun": json.dumps(self._recipe(seed))},
                    progress=self.progress and not done,
                )
            if not done and processes.is_first():
                self.say(f"sweep of seed {seed} -> {path}")
        return results

    def _swept(self, bank: CheckpointBank, seed: int | None = None) -> tuple[LossFn, CheckpointBank, Params | None]:
        """Loss, checkpoints and mask of a sweep, in the coordinates in which it samples."""
        chosen = bank.at_steps(self.experiment.swept_steps(bank.steps, seed))
        return relative(self.loss, chosen) if self.experiment.coordinates == "relative" else (self.loss, chosen, None)

    def _sweep_path(self, seed: int) -> Path:
        return self.out / "sweeps" / f"seed_{seed}"

    def _recipe(self, seed: int) -> dict[str, Any]:
        """What `llcjax rerun` makes the sweep of a seed from; `models` as seen from the store."""
        models = os.path.relpath(self.models, self._sweep_path(seed))
        return {PIPELINE: self.name, "options": as_dict(self.experiment.alone(seed)), "models": models}

    def finished(self) -> Iterator[tuple[int, CheckpointBank | SavedBank, xr.Dataset]]:
        """Seed, checkpoints and sweep of every seed whose sweep is complete."""
        if self._is_trained():
            for seed in self._seeds:
                if is_complete(self._sweep_path(seed)):
                    yield seed, self._known_bank(seed), open_sweep(self._sweep_path(seed))

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

        Raises:
            ValueError: the experiment samples in relative coordinates.
        """
        if self.experiment.coordinates != "weights":
            raise ValueError(f"coordinates={self.experiment.coordinates!r} cannot be calibrated; set it to weights.")
        folder, seed = self.out / "calibration", self.experiment.sweep_seeds[0]
        result = calibrate(
            self.loss,
            self.banks()[seed],
            self.data(),
            [grid for grid in (self.experiment.sweep, second) if grid is not None],
            checkpoints=checkpoints,
            chance=self.chance,
            target_acceptance=target_acceptance,
            out=folder,
            progress=self.progress,
        )
        title = f"Calibration, {self.title[0].lower()}{self.title[1:]}, seed {seed}"
        return result, write_calibration(folder, result, title=title, command=self.command)

    def forecast(self) -> Forecast:
        """What the sweep of the first seed will need; untrained checkpoints stand in for those that are missing.

        Raises:
            ValueError: bad input, as of the sweep itself.
        """
        trained = self.out / "banks" / f"seed_{self.experiment.sweep_seeds[0]}"
        bank = self._loaded.get(self.experiment.sweep_seeds[0])
        if bank is None and is_bank(trained):
            bank = load_bank(trained)
        if bank is None:
            steps = self.experiment.swept_steps(self.experiment.train.snapshot_steps())
            bank = CheckpointBank(params=trees.stack([self.init(as_key(0))] * len(steps)), steps=steps)
        loss, swept, _ = self._swept(bank)
        return forecast(loss, swept, self.data(), self.experiment.sweep)

    def report(self) -> dict[int, SeedReport]:
        """Estimates, stages and report of each swept seed; the first one's report is the folder's."""
        if not self._is_trained():
            raise ValueError(f"{self.out} holds no finished training; run `llcjax run` on it first.")
        results = {}
        for position, seed in enumerate(self._seeds):
            measured = self.analyses(seed, self._known_bank(seed))
            results[seed] = report_seed(
                self.out if position == 0 else self.out / f"seed_{seed}",
                open_sweep(self._sweep_path(seed)),
                measured,
                self.out / "calibration",
                title=f"{self.title}, seed {seed}",
                config=as_dict(self.experiment),
                command=self.command,
                chance_name=self.chance_name,
                **self.shown(measured),
            )
        return results
