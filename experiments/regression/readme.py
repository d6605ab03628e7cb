"""Puts the tables of a run into README.md beside this: `python experiments/regression/readme.py [RUN]`.

With RUN, the folder of a run of `llcjax run regression --preset paper`, its `tables/` are copied to `results/tables/`
first, and so are those of its figures that the README shows. In the README a table stands between
`<!-- table: NAME key=value ... | column ... -->` and `<!-- end -->`: the named columns of those rows of
`results/tables/NAME.csv` that have one of these values (`step=0,984`). NAME may begin with another folder beside
`tables`, as in `quick/llc`.
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TABLES = HERE / "results" / "tables"
_PLACE = re.compile(
    r"(<!-- table: (?P<name>[\w/]+)(?P<wanted>[^|>]*)\|(?P<columns>[^>]*)-->\n).*?(<!-- end -->)", re.DOTALL
)


def rendered(text: str, folder: Path = TABLES) -> str:
    """The text with every table replaced by what its file holds.

    Raises:
        ValueError: a table names a column that its file does not have.
    """

    def filled(match: re.Match[str]) -> str:
        wanted = dict(pair.split("=", 1) for pair in match["wanted"].split())
        name = match["name"]
        path = folder.parent / f"{name}.csv" if "/" in name else folder / f"{name}.csv"
        return match[1] + _table(path, wanted, match["columns"].split()) + match[5]

    return _PLACE.sub(filled, text)


def _table(path: Path, wanted: dict[str, str], columns: list[str]) -> str:
    if not path.exists():
        return f"No `{path.name}` yet: the run that makes it has not been made with this version.\n"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = {*columns, *wanted} - {*rows[0]}
    if missing:
        raise ValueError(f"{path} has no column {sorted(missing)[0]!r}; it has {', '.join(rows[0])}.")
    chosen = [row for row in rows if all(row[name] in values.split(",") for name, values in wanted.items())]
    lines = [columns, ["---"] * len(columns), *([_short(row[name]) for name in columns] for row in chosen)]
    return "\n".join("| " + " | ".join(name.replace("_", " ") for name in line) + " |" for line in lines) + "\n"


def _short(cell: str) -> str:
    """A number with four digits and thousands apart; other text as it is."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    if value != value:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def fill(here: Path, runs: Sequence[tuple[str, Path]]) -> None:
    """Copies tables of runs, and figures that the README shows, into `results/SUBFOLDER/`; rewrites the README.

    Args:
        here: folder of the experiment.
        runs: name of the subfolder and the run; one without `tables/` has those of its report.
    """
    readme = here / "README.md"
    text = readme.read_text()
    for name, run in runs:
        target, made = here / "results" / name, run / "tables"
        target.mkdir(parents=True, exist_ok=True)
        if not (run / "figures" / "curve.png").exists():
            raise ValueError(f"{run} has no figures/curve.png; make its report with `llcjax report {run}` first.")
        tables = sorted(made.glob("*.csv") if made.exists() else run.glob("*.csv"))
        figures = [path for folder in (made, run / "figures") for path in sorted(folder.glob("*.png"))]
        for path in [*tables, *(path for path in figures if f"(results/{name}/{path.name})" in text)]:
            shutil.copy(path, target / path.name)
    readme.write_text(rendered(text, here / "results" / "tables"))


if __name__ == "__main__":
    fill(HERE, [("tables", Path(run)) for run in sys.argv[1:2]])
