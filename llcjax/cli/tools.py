"""Commands that need no experiment: stages of any curve, known answers, throughput."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from llcjax import bench
from llcjax.cli.arguments import parse
from llcjax.cli.tables import print_stages, print_throughput
from llcjax.config import Precision
from llcjax.estimators import estimates
from llcjax.provenance import provenance, write_json
from llcjax.stages import find_stages, llc_stages, read_curve
from llcjax.store import open_sweep
from llcjax.verify import print_verification, verify


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
    (the same with our kernels), regression-bf16, regression-pallas-fp16, regression-pallas-bf16, language (the paper's
    language model, 3,355,016) and language-bf16; none = all that suit the device."""
    runs: tuple[int, ...] = ()
    """Numbers of chains at once; none = those that suit the device."""
    precision: Precision = "highest"
    """Of the matrix products."""
    draws: int | None = None
    """Steps between two visits of the host; none = 100, and 20 of the language model."""
    repeats: int = 5
    """Timed pieces; the median counts."""
    out: Path | None = None
    """JSON file for the rows and their provenance."""


def find_and_print_stages(arguments: list[str]) -> None:
    """`stages`."""
    options = parse(_StageOptions, arguments, "llcjax stages")
    if options.path.is_dir():
        found = llc_stages(estimates(open_sweep(options.path)), setting=options.setting, method=options.method)
    else:
        step, value, stderr, loss = read_curve(options.path, options.value)
        found = find_stages(step, value, stderr, loss=loss, method=options.method, tolerance=options.tolerance)
    print_stages(found, options.value)


def run_verification(arguments: list[str]) -> None:
    """`verify`."""
    options = parse(_VerifyOptions, arguments, "llcjax verify")
    _check_file(options.out)
    result = verify(options.suite, report=_to_stderr if options.progress else None)
    print_verification(result)
    if options.out is not None:
        _write_rows(result.as_dict(), options.out)
    if not result.passed:
        raise SystemExit(1)


def run_benchmark(arguments: list[str]) -> None:
    """`bench`."""
    options = parse(_BenchOptions, arguments, "llcjax bench")
    _check_file(options.out)
    if any(number is not None and number < 1 for number in (options.draws, options.repeats, *options.runs)):
        raise ValueError(f"draws={options.draws}, repeats={options.repeats}, runs={options.runs} must be at least 1.")
    bench.check_workloads(options.workloads)
    best = bench.ceilings(options.precision, options.repeats)
    rows = bench.rows(best, options.workloads, options.runs, precision=options.precision, num_draws=options.draws,
                      repeats=options.repeats)  # fmt: skip
    facts = provenance()
    print_throughput(rows, f"Throughput on {facts['device']}, jax {facts['jax']}")
    if options.out is not None:
        _write_rows({"rows": rows}, options.out)


def _check_file(path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise ValueError(f"out={path} is a folder; give the name of a file.")


def _write_rows(facts: dict[str, Any], path: Path) -> None:
    write_json(facts, path)
    print(f"rows: {path.resolve()}")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
