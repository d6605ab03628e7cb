"""The table that a user reads."""

from __future__ import annotations

import itertools
import math

from rich import box
from rich.console import Console
from rich.table import Table

from llcjax.verify.rows import Row, Verification

_WIDE = 172  # columns that the table needs; narrower, its numbers would be cut
_HEADER = (
    "case", "sampler", "lambda", "posterior", "off", "expected", "estimate", "error", "z", "verdict", "peers", "s",
    "", "note",
)  # fmt: skip
LEGEND = (
    "posterior: exact expectation under the local posterior; off: its distance from lambda, a limit of large n_beta;",
    "expected: the same with the stated bias of the sampler's step; error: relative to expected, or to lambda where",
    "nothing exact is known; z: in standard errors, allowing for few chains; peers: devinterp at its own settings,",
    "with the standard deviation over its chains (1.3.2 for crossings, 2.0.1 for monomials); s: seconds.",
)


def print_verification(result: Verification, console: Console | None = None) -> None:
    """Prints the rows, what the columns mean and what it comes to."""
    console = console or Console(width=max(Console().width, _WIDE))
    table = Table(title=f"Known answers, suite {result.suite}", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in _HEADER:
        left = name in ("case", "sampler", "verdict", "note")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "note")
    for _, rows in itertools.groupby(result.rows, key=lambda row: row.group):
        for row in rows:
            table.add_row(*cells(row), style="bold red" if row.passed is False else None)
        table.add_section()
    console.print(table)
    for line in (*LEGEND, "", *result.summary()):
        console.print(line, highlight=False)
    console.print(f"{'passed' if result.passed else 'FAILED'} in {result.seconds:.0f} s", highlight=False)


def cells(row: Row) -> tuple[str, ...]:
    """One row as text."""
    off = "" if row.posterior is None or not row.llc else f"{row.posterior / row.llc - 1:+.0%}"
    return (
        row.case,
        row.sampler,
        _number(row.llc),
        _number(row.posterior),
        off,
        _number(row.expected),
        f"{_number(row.estimate)} ± {_number(row.stderr)}",
        "" if math.isnan(row.relative_error) else f"{row.relative_error:+.1%}",
        "" if row.z is None else f"{row.z:+.2f}",
        row.verdict,
        row.peers,
        f"{row.seconds:.1f}",
        {True: "ok", False: "FAIL", None: "-"}[row.passed],
        row.note,
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
