"""Puts the tables of `benchmarks/results/*.json` into benchmarks/README.md: `python -m benchmarks.readme`.

A table stands between `<!-- table: FILE -->` and `<!-- end -->`, where FILE is the result's name without `.json`; with
`notes:` in the place of `table:` only the sentences under it do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.harness import RESULTS, table

README = Path(__file__).parent / "README.md"
_PLACE = re.compile(r"(<!-- (?P<what>table|notes): (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str, results: Path = RESULTS) -> str:
    """The text with every table replaced by what its result file holds.

    Raises:
        ValueError: a table names a result that is not there, or a result has no place in the text.
    """
    places = {match["name"] for match in _PLACE.finditer(text)}
    files = {path.stem for path in results.glob("*.json")}
    if places != files:
        raise ValueError(
            f"tables without results: {sorted(places - files)}; results without a table: {sorted(files - places)}."
        )

    def filled(match: re.Match[str]) -> str:
        return match[1] + _section(results / f"{match['name']}.json", match["what"]) + match[4]

    return _PLACE.sub(filled, text)


def _section(path: Path, what: str) -> str:
    facts = json.loads(path.read_text())
    source = facts["provenance"]
    origin = f"`{facts['command']}`, {source['device']}, jax {source['jax']}, llcjax {source['llcjax']}"
    shown = [table(facts["rows"]), ""] if what == "table" else []
    lines = [f"**{facts['title']}**", "", *shown, *(f"{note}  " for note in facts["notes"])]
    return "\n".join([*lines, "", f"<sub>{origin}</sub>", ""])


def main() -> None:
    """Rewrites the README."""
    README.write_text(rendered(README.read_text()))


if __name__ == "__main__":
    main()
