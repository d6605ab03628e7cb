"""`llcjax sweep --model DIR [DIR ...] --tokens FILE`: models that others trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from llcjax.cli.arguments import parse, shell
from llcjax.cli.tables import print_verdicts
from llcjax.pipelines.pretrained import PretrainedSweep, run_pretrained


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """Models that others trained: their LLC, or the refined LLC of their parts, with a report."""

    config: Annotated[PretrainedSweep, tyro.conf.arg(name="")]
    out: Path = Path("runs/pretrained")
    """Folder of the results. An unfinished sweep there is resumed."""
    progress: bool = True
    """Progress bars on standard error."""
    distributed: bool = False
    """Joins other processes, as `llcjax sweep regression` does."""


def sweep_pretrained(arguments: list[str]) -> None:
    """`sweep --model`."""
    options = parse(_Options, arguments, "llcjax sweep")
    command = shell(["sweep", *arguments])
    report, table = run_pretrained(options.config, options.out, command=command, progress=options.progress)
    print_verdicts(table)
    for setting in range(table.sizes["setting"]):
        one = table.isel(setting=setting)
        name = str(one["component"].values) if "component" in table.coords else "all parameters"
        values = ", ".join(
            f"{llc:.3g} +- {error:.2g}" for llc, error in zip(one["llc"].values, one["llc_stderr"].values, strict=True)
        )
        print(f"{name}: LLC {values}")
    print(f"report: {report.resolve()}")
