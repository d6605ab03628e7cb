"""Curves in CSV files."""

from __future__ import annotations

import csv
from os import PathLike

import numpy as np

from llcjax import checks
from llcjax.untrusted import reason


def read_curve(
    path: str | PathLike[str], value: str = "llc"
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Read a curve from a CSV file with a header.

    The columns are `step`, the one named by `value`, and where present `<value>_stderr` or `stderr` (one
    standard error) and `loss`, `test_loss` or `test_mse`. Other columns are ignored; so is `llc_draw_std` of
    the published tables, the standard deviation of single draws and not an error of the value.

    Args:
        path: The file.
        value: Name of the column with the values.

    Returns:
        step, value, standard error or None, loss or None, each (C,) float64.

    Raises:
        ValueError: If the file cannot be read, or lacks a column, or holds text where a number belongs.
    """
    checks.path("path", path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV ({reason(error)}); give a file with a header.") from error
    header = list(rows[0]) if rows else []
    for name in ("step", value):
        if name not in header:
            held = ", ".join(map(str, header[:20]))
            raise ValueError(f"{path} has no column {name!r} (it has {held:.300}); name one that is there.")
    stderr = [name for name in (f"{value}_stderr", "stderr") if name in header]
    loss = [name for name in ("loss", "test_loss", "test_mse") if name in header and name != value]
    return (
        _column(rows, "step", path),
        _column(rows, value, path),
        _column(rows, stderr[0], path) if stderr else None,
        _column(rows, loss[0], path) if loss else None,
    )


def _column(rows: list[dict[str, str]], name: str, path: str | PathLike[str]) -> np.ndarray:
    """Return one column as (C,) floats."""
    try:
        return np.array([float(row[name]) for row in rows])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds an entry of column {name!r} that is not a number: {reason(error)}.") from error
