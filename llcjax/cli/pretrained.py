"""Sweeps of language models: `llcjax sweep --model` of those that others trained, `llcjax heads` of a bank."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from llcjax.cli.arguments import parse, shell
from llcjax.cli.tables import print_components
from llcjax.pipelines.heads import HeadsSweep, run_heads
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
    print_components(table)
    print(f"report: {report.resolve()}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Heads:
    """The refined LLC of every head of an attention-only language model, at checkpoints of a bank, with a report."""

    config: Annotated[HeadsSweep, tyro.conf.arg(name="")]
    out: Path = Path("runs/heads")
    """Folder of the results. An unfinished sweep there is resumed."""
    progress: bool = True
    """Progress bars on standard error."""


def sweep_all_heads(arguments: list[str]) -> None:
    """`heads`."""
    options = parse(_Heads, arguments, "llcjax heads")
    command = shell(["heads", *arguments])
    report, table = run_heads(options.config, options.out, command=command, progress=options.progress)
    print_components(table)
    print(f"report: {report.resolve()}")
