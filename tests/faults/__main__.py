"""Tries the faults and writes what happened: `python -m tests.faults [NAME ...]`, without names all of them."""

import sys
import tempfile
import time
from pathlib import Path

from tests.faults.list import FAULTS
from tests.faults.table import load, put_in, save
from tests.faults.work import ROOT

RESULTS = ROOT / "tests" / "faults" / "results.json"


def main(names):
    for name in names or FAULTS:
        fault, tries, _ = FAULTS[name]
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            row = fault(tries, 0, Path(folder))
        row.facts["minutes"] = round((time.monotonic() - started) / 60, 1)
        print(name, row, flush=True)
        rows = {**load(RESULTS), name: row}
        rows = {name: rows[name] for name in FAULTS if name in rows}  # in the order of the list
        save(rows, RESULTS)
        put_in(ROOT / "README.md", rows.values())


if __name__ == "__main__":
    main(sys.argv[1:])
