"""What was tried, as JSON and as the table of the README."""

import dataclasses
import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- faults: made by python -m tests.faults -->", "<!-- end of faults -->"


@dataclasses.dataclass
class Row:
    """One fault."""

    fault: str
    tried: int
    happened: str
    lost: int
    """Tries after which something was lost or wrong."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further measurements."""


def markdown(rows):
    lines = ["| fault | tried | what happened | lost |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.fault} | {row.tried} | {row.happened} | {row.lost} |" for row in rows)])


def load(file):
    """Name -> row of what was tried before."""
    file = Path(file)
    return {name: Row(**row) for name, row in json.loads(file.read_text()).items()} if file.exists() else {}


def save(rows, file):
    """Writes rows by name as JSON."""
    text = json.dumps({name: dataclasses.asdict(row) for name, row in rows.items()}, indent=1)
    Path(file).write_text(text + "\n", encoding="utf-8")


def put_in(readme, rows):
    """Replaces the table between two marks of the README."""
    text = Path(readme).read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    Path(readme).write_text(f"{head}{BEGIN}\n{markdown(rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
