"""Commands on an experiment in its folder: run, train, sweep, calibrate, report; and on a store: rerun."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Generic

import tyro

from llcjax import processes
from llcjax.cli.arguments import last_option, parse, shell
from llcjax.cli.tables import (
    print_calibration,
    print_differences,
    print_forecast,
    print_part,
    print_reports,
    print_tables,
    print_verdicts,
)
from llcjax.comparison import compare_sweeps, comparison_sentence
from llcjax.config import SweepConfig
from llcjax.config_file import load_sweep_config
from llcjax.estimators import estimates
from llcjax.pipelines.experiment_config import Experiment
from llcjax.pipelines.experiments import EXPERIMENTS, study_of
from llcjax.pipelines.rerun import changed_facts, rerun
from llcjax.pipelines.run_folder import load_config
from llcjax.store import open_sweep


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _ExperimentOptions(Generic[Experiment]):
    """Where an experiment lives, and its whole configuration."""

    config: Annotated[Experiment, tyro.conf.arg(name="")]
    preset: str = "quick"
    """Which defaults to start from: quick, paper, or synthetic of the language."""
    out: Path | None = None
    """Folder of the results; default runs/EXPERIMENT-PRESET. An unfinished run there is resumed."""
    settings: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """JSON file of sweep settings, such as calibrated.json; they replace those of the preset."""
    progress: bool = True
    """Progress bars on standard error."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SharedOptions(_ExperimentOptions[Experiment]):
    """An experiment whose sweep several processes may share."""

    distributed: bool = False
    """Joins other processes, started by srun or named by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID;
    each sweeps its part of the checkpoints into the same folder. On by itself in a step of srun with several tasks."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _RunOptions(_SharedOptions[Experiment]):
    """A whole experiment."""

    part: tuple[str, ...] = ()
    """Only these parts of the experiment, such as `published calibrated`, without the tables over all; none = all in
    their order, then the tables. Every part and every step in it goes on where it stopped, so a run may be cut by
    limits of time anywhere."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SweepOptions(_SharedOptions[Experiment]):
    """A sweep of an experiment."""

    dry_run: bool = False
    """Prints launches, memory, arithmetic and predicted time, and stores nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _CalibrateOptions(_ExperimentOptions[Experiment]):
    """A grid of sweep settings: several values of n_beta, localization and step_size."""

    checkpoints: tuple[int, ...] = ()
    """Training steps to look at; none = five, spread over the loss curve."""
    second_sampler: str | None = None
    """A further sampler, compared over the same n_beta and localization."""
    second_step_size: tuple[float, ...] = ()
    """Step sizes of the second sampler; none = those of the first."""
    target_acceptance: float | None = None
    """MALA acceptance that SGLD's step size is to have, such as 0.9: a warm-up finds it for each n_beta and
    localization; none = the step sizes as given."""


@dataclasses.dataclass(frozen=True, slots=True)
class _RerunOptions:
    """Makes a sweep again from what its store says, and compares; exit code 0 if they are the same, 1 if not."""

    store: tyro.conf.Positional[Path]
    """Store of a finished sweep, such as runs/regression-quick/sweeps/seed_0."""
    out: Path | None = None
    """Folder of the rerun; none = the name of the store with -rerun behind it. An unfinished one goes on."""
    retrain: bool = False
    """Trains the models again too, instead of taking the checkpoints that were swept."""
    tolerance: float = 0.0
    """Largest difference that passes, relative to the largest value of the array; 0 asks for the same bits."""
    progress: bool = True
    """Progress bars on standard error."""


@dataclasses.dataclass(frozen=True, slots=True)
class _ReportOptions:
    """The report of a run folder, and the tables over its finished parts where it has several."""

    directory: tyro.conf.Positional[Path]
    """Folder of a run."""


def run_experiment(command: str, arguments: list[str]) -> None:
    """`run`, `train` or `sweep`."""
    name, rest = _experiment_name(arguments)
    preset = _preset(name, rest)
    kind = {"sweep": _SweepOptions, "run": _RunOptions}.get(command, _ExperimentOptions)
    study = EXPERIMENTS[name]
    default = kind(config=_with_settings(study.presets[preset], rest), preset=preset)
    options = parse(kind[study.run.config_type], rest, f"llcjax {command} {name}", default)
    out = options.out or Path("runs") / f"{name}-{preset}"
    if isinstance(options, _SweepOptions) and options.dry_run:
        run = study.run(options.config, out, progress=False, purpose="forecast")
        print_forecast(run.forecast(), len(options.config.sweep_seeds))
        return
    line = shell([command, *arguments])
    run = study.run(options.config, out, command=line, progress=options.progress)
    if command == "train":
        run.banks()
    elif command == "sweep":
        for facts in run.sweeps().values():
            if processes.is_first():
                print_verdicts(estimates(facts))
    else:
        named = getattr(options, "part", ())
        for part_name, part in run.parts(named).items():
            part.sweeps()
            processes.first_alone(lambda n=part_name, p=part: print_part(n, p))
        # One part alone has all its tables in its report, and named parts may be made side by side.
        if options.config.further and not named:
            processes.first_alone(lambda: print_tables(run))


def run_calibration(arguments: list[str]) -> None:
    """`calibrate`."""
    name, rest = _experiment_name(arguments)
    preset = _preset(name, rest)
    study = EXPERIMENTS[name]
    base = dataclasses.replace(study.presets[preset], sweep=study.grids[preset])
    default = _CalibrateOptions(config=_with_settings(base, rest), preset=preset)
    options = parse(_CalibrateOptions[study.run.config_type], rest, f"llcjax calibrate {name}", default)
    out = options.out or Path("runs") / f"{name}-{preset}"
    line = shell(["calibrate", *arguments])
    second = _second_grid(options)
    run = study.run(options.config, out, command=line, progress=options.progress, purpose="calibrate")
    result, page = run.calibrate(
        checkpoints=options.checkpoints or None, second=second, target_acceptance=options.target_acceptance
    )
    print_calibration(result)
    print(f"page: {page.resolve()}")
    if result.recommended is not None:
        file = page.parent / "calibrated.json"
        print(f"use it: {shell(['sweep', name, '--config', str(file), '--out', 'FOLDER'])}")


def make_report(arguments: list[str]) -> None:
    """`report`."""
    options = parse(_ReportOptions, arguments, "llcjax report")
    config = load_config(options.directory)
    kind = study_of(config).run
    line = shell(["report", str(options.directory)])
    run = kind(kind.experiment_from(config), options.directory, command=line)
    print_reports(run)
    if run.experiment.further:
        print_tables(run)


def rerun_and_compare(arguments: list[str]) -> None:
    """`rerun`."""
    options = parse(_RerunOptions, arguments, "llcjax rerun")
    if not options.tolerance >= 0:
        raise ValueError(f"tolerance={options.tolerance:g} must be 0 or more.")
    out = options.out or options.store.with_name(options.store.name + "-rerun")
    new = rerun(options.store, out, retrain=options.retrain, progress=options.progress)
    old = open_sweep(options.store)
    differences = compare_sweeps(old, new)
    same, sentence = comparison_sentence(differences, options.tolerance)
    print_differences(differences)
    print("\n".join([*changed_facts(old, new), sentence]))
    if not same:
        raise SystemExit(1)


def _experiment_name(arguments: list[str]) -> tuple[str, list[str]]:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("-h", "--help", ""):
        name, rest = "regression", ["--help"]
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment={name!r} is unknown; choose one of {', '.join(EXPERIMENTS)}.")
    return name, rest


def _preset(name: str, arguments: list[str]) -> str:
    """The preset named on the command line; it decides the defaults of all other options."""
    chosen = last_option(arguments, "--preset") or "quick"
    if chosen not in EXPERIMENTS[name].presets:
        raise ValueError(f"preset={chosen!r} is unknown; choose one of {', '.join(EXPERIMENTS[name].presets)}.")
    return chosen


def _with_settings(experiment: Experiment, arguments: list[str]) -> Experiment:
    """The experiment with the sweep settings of the file that `--config` names; flags come after it."""
    path = last_option(arguments, "--config")
    if path is None:
        return experiment
    return dataclasses.replace(experiment, sweep=load_sweep_config(path, experiment.sweep))


def _second_grid(options: _CalibrateOptions) -> SweepConfig | None:
    if options.second_sampler is None:
        return None
    first = options.config.sweep
    return dataclasses.replace(
        first,
        sampler=options.second_sampler,
        sampler_options={},
        step_size=options.second_step_size or first.step_size,
        acceptance_every=0,
    )
