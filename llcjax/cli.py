"""The command line: `llcjax run | train | calibrate | sweep | stages | report | verify | bench`.

Bad input ends with one sentence and exit code 2; Ctrl-C with what to type to go on, and exit code 130.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import xarray as xr
from rich.console import Console
from rich.table import Table

from llcjax import _compat, bench, processes
from llcjax.calibrate import Calibration
from llcjax.config import Precision, SweepConfig
from llcjax.config_file import load_sweep_config
from llcjax.curve_verdict import curve_verdict
from llcjax.estimators import estimates
from llcjax.forecast import Forecast
from llcjax.interrupt import Interrupted
from llcjax.pipelines import regression
from llcjax.provenance import provenance, write_json
from llcjax.report.calibration import HEADER, calibration_rows
from llcjax.selection import setting_label, verdict_counts
from llcjax.stages import Stages, find_stages, llc_stages, read_curve
from llcjax.store import open_sweep
from llcjax.verify import print_verification, verify

OVERVIEW = """\
usage: llcjax COMMAND ...

  run regression      train, sweep, stages and report in one folder; finished steps are skipped
  train regression    only the training
  calibrate regression  a grid of step size, n_beta and localization at a few checkpoints; recommends one setting
  sweep regression    training where it is missing, then the LLC sweep
  stages FILE|STORE   stages of a curve in a CSV file, or of the LLC in a store
  report DIR          estimates, stages and report of a finished sweep again
  verify              known answers: true value, estimate, error and verdict of every case on this machine
  bench               chain-steps a second on this machine, against what its arithmetic can do

llcjax COMMAND --help explains every field with its unit and default.
--preset quick (2 cores, minutes) or --preset paper (one GPU) chooses the defaults of run, train and sweep.
"""

Options = TypeVar("Options")
EXPERIMENTS = {"regression": regression.PRESETS}
_WIDE = 150  # columns that the table of a calibration needs; in 80 its numbers would be cut


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _ExperimentOptions:
    """Where an experiment lives, and its whole configuration."""

    config: Annotated[regression.RegressionExperiment, tyro.conf.arg(name="")]
    preset: str = "quick"
    """Which defaults to start from: quick or paper."""
    out: Path | None = None
    """Folder of the results; default runs/EXPERIMENT-PRESET. An unfinished run there is resumed."""
    settings: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """JSON file of sweep settings, such as calibrated.json; they replace those of the preset."""
    progress: bool = True
    """Progress bars on standard error."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SharedOptions(_ExperimentOptions):
    """An experiment whose sweep several processes may share."""

    distributed: bool = False
    """Joins other processes, started by srun or named by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID;
    each sweeps its part of the checkpoints into the same folder. On by itself in a step of srun with several tasks."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SweepOptions(_SharedOptions):
    """A sweep of an experiment."""

    dry_run: bool = False
    """Prints launches, memory, arithmetic and predicted time, and stores nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _CalibrateOptions(_ExperimentOptions):
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
class _StageOptions:
    """Stages of a curve."""

    path: tyro.conf.Positional[Path]
    """A CSV file with columns step and the value (optionally its standard error), or the store of a sweep."""
    value: str = "llc"
    """Column of the value in a CSV file."""
    method: Literal["gp", "paper"] = "gp"
    """gp = Gaussian process with measured or fitted noise and intervals; paper = the published procedure."""
    setting: int = 0
    """Index of the hyperparameter setting in a store."""
    tolerance: float | None = None
    """Slope that counts as rest, per e-fold of step + 1; none = 5% of the largest (8 for method paper). CSV only."""


@dataclasses.dataclass(frozen=True, slots=True)
class _ReportOptions:
    """The report of a run folder."""

    directory: tyro.conf.Positional[Path]
    """Folder of a run."""


@dataclasses.dataclass(frozen=True, slots=True)
class _VerifyOptions:
    """Known answers; exit code 0 if all rows pass, 1 if not."""

    suite: str = "quick"
    """quick (2 cores, at most 4 minutes), full (2 cores, 15 minutes) or gpu (one GPU, up to 1M parameters)."""
    out: Path | None = None
    """JSON file for the rows and their provenance."""
    progress: bool = True
    """A line on standard error after each sweep."""


@dataclasses.dataclass(frozen=True, slots=True)
class _BenchOptions:
    """Throughput of SGLD chains, warm."""

    workloads: tuple[str, ...] = ()
    """toy (340 parameters), mlp (50,890), regression (the paper's transformer, 51,717), and for a GPU regression-pallas
    (the same with our attention kernel), regression-bf16, regression-pallas-bf16, language (the paper's language model,
    3,355,016) and language-bf16; none = all that suit the device."""
    runs: tuple[int, ...] = ()
    """Numbers of chains at once; none = those that suit the device."""
    precision: Precision = "highest"
    """Of the matrix products."""
    draws: int = 100
    """Steps between two visits of the host."""
    repeats: int = 5
    """Timed pieces; the median counts."""
    out: Path | None = None
    """JSON file for the rows and their provenance."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command line; ends with `SystemExit` on errors."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "run": lambda rest: _experiment("run", rest),
        "train": lambda rest: _experiment("train", rest),
        "calibrate": _calibrate,
        "sweep": lambda rest: _experiment("sweep", rest),
        "stages": _stages,
        "report": _report,
        "verify": _verify,
        "bench": _bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in commands:
            raise ValueError(f"command={command!r} is unknown; choose one of {', '.join(commands)}.")
        # Before anything asks for a device.
        if command in ("run", "sweep") and ("--distributed" in rest or processes.launched_by_slurm()):
            processes.join()
        _compat.enable_compilation_cache()
        commands[command](rest)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"llcjax: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"\nllcjax: {stop or 'stopped'}. Go on with: {_shell(arguments)}", file=sys.stderr)
        raise SystemExit(130) from None


def _parse(options: type[Options], arguments: list[str], prog: str, default: Options | None = None) -> Options:
    """Parses options; a value that a config refuses ends as its own sentence, not in tyro's box."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if default is None:
                return tyro.cli(options, args=arguments, prog=prog)
            return tyro.cli(options, args=arguments, prog=prog, default=default)
    except SystemExit as stop:
        cause = stop.__context__
        while cause is not None and not isinstance(cause, ValueError):
            cause = cause.__context__
        if cause is not None:
            raise ValueError(str(cause)) from None
        print(printed.getvalue(), end="", file=sys.stderr)
        raise


def _shell(arguments: Sequence[str]) -> str:
    return shlex.join(["llcjax", *arguments])


def _experiment(command: str, arguments: list[str]) -> None:
    name, rest = _experiment_name(arguments)
    preset = _preset(name, rest)
    kind = {"sweep": _SweepOptions, "run": _SharedOptions}.get(command, _ExperimentOptions)
    default = kind(config=_with_settings(EXPERIMENTS[name][preset], rest), preset=preset)
    options = _parse(kind, rest, f"llcjax {command} {name}", default)
    out = options.out or Path("runs") / f"{name}-{preset}"
    if isinstance(options, _SweepOptions) and options.dry_run:
        _print_forecast(regression.forecast_sweep(options.config, out), len(options.config.sweep_seeds))
        return
    line = _shell([command, *arguments])
    run = regression.RegressionRun(options.config, out, command=line, progress=options.progress)
    if command == "train":
        run.banks()
    elif command == "sweep":
        for facts in run.sweeps().values():
            if processes.is_first():
                _print_verdicts(estimates(facts))
    else:
        run.sweeps()
        processes.first_alone(lambda: _print_reports(run))


def _experiment_name(arguments: list[str]) -> tuple[str, list[str]]:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("-h", "--help", ""):
        name, rest = "regression", ["--help"]
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment={name!r} is unknown; choose one of {', '.join(EXPERIMENTS)}.")
    return name, rest


def _with_settings(
    experiment: regression.RegressionExperiment, arguments: list[str]
) -> regression.RegressionExperiment:
    """The experiment with the sweep settings of the file that `--config` names; flags come after it."""
    path = _option(arguments, "--config")
    if path is None:
        return experiment
    return dataclasses.replace(experiment, sweep=load_sweep_config(path, experiment.sweep))


def _option(arguments: list[str], flag: str) -> str | None:
    """The last value of an option that decides the defaults of others, before all of them are parsed."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    return found


def _calibrate(arguments: list[str]) -> None:
    name, rest = _experiment_name(arguments)
    preset = _preset(name, rest)
    base = dataclasses.replace(EXPERIMENTS[name][preset], sweep=regression.GRIDS[preset])
    default = _CalibrateOptions(config=_with_settings(base, rest), preset=preset)
    options = _parse(_CalibrateOptions, rest, f"llcjax calibrate {name}", default)
    out = options.out or Path("runs") / f"{name}-{preset}"
    line = _shell(["calibrate", *arguments])
    second = _second_grid(options)
    run = regression.RegressionRun(options.config, out, command=line, progress=options.progress, calibrating=True)
    result, page = run.calibrate(
        checkpoints=options.checkpoints or None, second=second, target_acceptance=options.target_acceptance
    )
    _print_calibration(result)
    print(f"page: {page.resolve()}")
    if result.recommended is not None:
        file = page.parent / "calibrated.json"
        print(f"use it: {_shell(['sweep', name, '--config', str(file), '--out', 'FOLDER'])}")


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


def _print_calibration(result: Calibration) -> None:
    steps = ", ".join(f"{step:,}" for step in result.table["checkpoint"].values)
    table = Table(title=f"LLC at steps {steps}")
    for column in HEADER:
        table.add_column(column, justify="right")
    for row in calibration_rows(result):
        table.add_row(*row, style="bold" if row[0].endswith("*") else None)
    Console(width=max(Console().width, _WIDE)).print(table)
    print("recommended:" if result.recommended is not None else "no setting is recommended:")
    for reason in result.reasons:
        print(f"  {reason}")


def _preset(name: str, arguments: list[str]) -> str:
    """The preset named on the command line; it decides the defaults of all other options."""
    chosen = _option(arguments, "--preset") or "quick"
    if chosen not in EXPERIMENTS[name]:
        raise ValueError(f"preset={chosen!r} is unknown; choose one of {', '.join(EXPERIMENTS[name])}.")
    return chosen


def _report(arguments: list[str]) -> None:
    options = _parse(_ReportOptions, arguments, "llcjax report")
    experiment = regression.experiment_from(regression.load_experiment(options.directory))
    line = _shell(["report", str(options.directory)])
    _print_reports(regression.RegressionRun(experiment, options.directory, command=line))


def _verify(arguments: list[str]) -> None:
    options = _parse(_VerifyOptions, arguments, "llcjax verify")
    _check_file(options.out)
    result = verify(options.suite, report=_to_stderr if options.progress else None)
    print_verification(result)
    if options.out is not None:
        _write_rows(result.as_dict(), options.out)
    if not result.passed:
        raise SystemExit(1)


def _bench(arguments: list[str]) -> None:
    options = _parse(_BenchOptions, arguments, "llcjax bench")
    _check_file(options.out)
    if min((options.draws, options.repeats, *options.runs)) < 1:
        raise ValueError(f"draws={options.draws}, repeats={options.repeats}, runs={options.runs} must be at least 1.")
    bench.check_workloads(options.workloads)
    best = bench.ceilings(options.precision, options.repeats)
    rows = bench.rows(best, options.workloads, options.runs, precision=options.precision, num_draws=options.draws,
                      repeats=options.repeats)  # fmt: skip
    facts = provenance()
    table = Table(title=f"Throughput on {facts['device']}, jax {facts['jax']}")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("workload", "precision") else "right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(width=max(Console().width, 140)).print(table)
    if options.out is not None:
        _write_rows({"rows": rows}, options.out)


def _check_file(path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise ValueError(f"out={path} is a folder; give the name of a file.")


def _write_rows(facts: dict[str, Any], path: Path) -> None:
    write_json(facts, path)
    print(f"rows: {path.resolve()}")


def _cell(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stages(arguments: list[str]) -> None:
    options = _parse(_StageOptions, arguments, "llcjax stages")
    if options.path.is_dir():
        found = llc_stages(estimates(open_sweep(options.path)), setting=options.setting, method=options.method)
    else:
        step, value, stderr, loss = read_curve(options.path, options.value)
        found = find_stages(step, value, stderr, loss=loss, method=options.method, tolerance=options.tolerance)
    _print_stages(found, options.value)


def _print_forecast(seen: Forecast, num_seeds: int) -> None:
    table = Table(title="Plan of the sweep" + (f" of each of {num_seeds} seeds" if num_seeds > 1 else ""))
    table.add_column("what")
    table.add_column("how much")
    for row in seen.rows():
        table.add_row(*row)
    Console().print(table)


def _print_reports(run: regression.RegressionRun) -> None:
    for seed, (path, stages, table) in run.report().items():
        print(f"\nseed {seed}")
        _print_verdicts(table)
        if stages is not None:
            _print_stages(stages, "LLC")
        print(f"report: {path.resolve()}")


def _print_verdicts(table: xr.Dataset) -> None:
    listed = ", ".join(f"{count} {name}" for name, count in verdict_counts(table).items())
    print(f"verdicts of {table['verdict'].size} estimates: {listed}")
    for setting in range(table.sizes["setting"]):
        curve = table.isel(setting=setting)
        which = f"curve at {setting_label(curve)}" if table.sizes["setting"] > 1 else "curve"
        print("{}: {} - {}".format(which, *curve_verdict(curve)))


def _print_stages(stages: Stages, value: str) -> None:
    table = Table(title=f"Stages of {value} (method {stages.method})")
    for column in (
        "stage",
        "type",
        "start",
        "end",
        "90% interval of the end",
        f"change of {value}",
        "change of loss",
    ):
        table.add_column(column, justify="right")
    for row in stages.table():
        interval = "" if row["end_lower"] != row["end_lower"] else f"{row['end_lower']:,.0f} to {row['end_upper']:,.0f}"
        change = f"{row['delta_value']:+.3g}"
        if row["delta_value_stderr"] == row["delta_value_stderr"]:
            change += f" +- {row['delta_value_stderr']:.2g}"
        loss = "" if row["delta_loss"] is None else f"{row['delta_loss']:+.3g}"
        table.add_row(row["name"], row["kind"], f"{row['start']:,.0f}", f"{row['end']:,.0f}", interval, change, loss)
    Console(soft_wrap=False).print(table)
    for plateau in stages.plateaus:
        print(f"plateau from step {plateau.start:,.0f} to {plateau.end:,.0f} (probability {plateau.probability:.2f})")


if __name__ == "__main__":
    main()
