"""What every benchmark shares: options, timing, results as JSON with their provenance, and Markdown tables.

A benchmark is a module with a function `measure(options) -> Measured` and ends with `run("NAME", measure)`. It prints
its table and writes `results/NAME-DEVICE.json`; `python -m benchmarks.readme` puts the tables of all results into
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from llcjax.provenance import write_json

RESULTS = Path(__file__).parent / "results"

Row = Mapping[str, Any]
"""Column heading -> number, text or None; the unit is part of the heading."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    toy: bool
    """Toy size: seconds on a CPU, to see that the benchmark runs; its figures mean nothing."""
    out: Path
    """Folder of the results."""
    only: tuple[str, ...] = ()
    """Cases to run, of those that the benchmark names; empty for all."""

    def wants(self, case: str) -> bool:
        """Whether a case was asked for."""
        return not self.only or case in self.only


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a benchmark found."""

    title: str
    """Heading of its table."""
    rows: Sequence[Row]
    settings: Mapping[str, Any]
    """Sizes, seeds and hyperparameters that the rows do not state."""
    notes: Sequence[str] = ()
    """Sentences that belong under the table."""
    details: Sequence[Row] = ()
    """Rows behind the table, too many to print; they are stored."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated calls, warm."""

    median: float
    lowest: float
    highest: float
    repeats: int


def timed(call: Callable[[], Any], *, repeats: int = 5, warmups: int = 1) -> Timing:
    """Times a call to the end of its device work, after warm-up calls that compile.

    Args:
        call: returns the arrays to wait for.
        repeats: timed calls.
        warmups: calls before them.
    """
    for _ in range(warmups):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds), repeats)


def run(name: str, measure: Callable[[Options], Measured], argv: Sequence[str] | None = None) -> Path:
    """Runs a benchmark from the command line: measures, prints the table, writes the JSON, returns its path."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--toy", action="store_true", help="toy size, to see that it runs")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results [benchmarks/results]")
    parser.add_argument("--only", nargs="+", default=(), help="cases to run")
    parsed = parser.parse_args(arguments)
    if parsed.toy and parsed.out is None:
        parser.error("--toy needs --out FOLDER, so that toy figures never replace measured ones")
    options = Options(toy=parsed.toy, out=parsed.out or RESULTS, only=tuple(parsed.only))
    measured = measure(options)
    # A part of a benchmark never takes the place of the whole.
    path = options.out / f"{'-'.join([name, *(options.only if not options.toy else ()), device_name()])}.json"
    facts = {
        "name": name,
        "title": measured.title,
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *_what(options)]),
        "settings": dict(measured.settings),
        "rows": [dict(row) for row in measured.rows],
        "notes": list(measured.notes),
        "details": [dict(row) for row in measured.details],
    }
    write_json(facts, path)
    print(table(measured.rows))
    for note in measured.notes:
        print(note)
    return path


def _what(options: Options) -> list[str]:
    """The arguments that change what is measured."""
    return [*(["--toy"] if options.toy else []), *(["--only", *options.only] if options.only else [])]


def device_name() -> str:
    """The device as part of a file name, such as `cpu` or `nvidia-h200`."""
    devices = jax.local_devices()
    kind = "cpu" if devices[0].platform == "cpu" else re.sub(r"[^a-z0-9]+", "-", devices[0].device_kind.lower())
    return kind if len(devices) == 1 or kind == "cpu" else f"{kind}-x{len(devices)}"


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; columns in the order of their first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        # Four digits, without an exponent where the number is readable.
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")
