"""Runs a suite of known answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from llcjax.estimators import estimates
from llcjax.sweep import sweep
from llcjax.verify.networks import class_problems, small_network_problems
from llcjax.verify.problem import Problem
from llcjax.verify.rows import Row, Verification
from llcjax.verify.singular import singular_problems
from llcjax.verify.smooth import smooth_problems

SUITES = ("quick", "full", "gpu")


def verify(
    suite: str = "quick", *, groups: Sequence[str] = (), report: Callable[[str], None] | None = None
) -> Verification:
    """Estimates LLCs whose answers are known, with every seed fixed, and compares.

    Args:
        suite: `quick` (2 cores, minutes), `full` (eight times as many draws, and deep linear networks of up to 22,000
            parameters) or `gpu` (quick, and deep linear networks of up to a million parameters).
        groups: only these groups of rows, such as `("quadratic",)`; all where it is empty.
        report: called with a line after each sweep.

    Returns:
        The rows, and whether they pass.

    Raises:
        ValueError: an unknown suite or group.

    Example:
        >>> verify("huge")
        Traceback (most recent call last):
            ...
        ValueError: suite='huge' is unknown; choose one of quick, full, gpu.
    """
    problems, rows, start = _of_groups(suite_problems(suite), groups), [], time.perf_counter()
    for index, problem in enumerate(problems):
        rows.extend(solve(problem))
        if report is not None:
            spent = time.perf_counter() - start
            report(f"{index + 1}/{len(problems)} {problem.group}: {problem.name} ({spent:.0f} s so far)")
    # Groups together, whatever the order in which their sweeps ran.
    groups = list(dict.fromkeys(row.group for row in rows))
    rows.sort(key=lambda row: groups.index(row.group))
    return Verification(suite=suite, rows=rows, seconds=time.perf_counter() - start)


def suite_problems(suite: str) -> Sequence[Problem]:
    """The problems of a suite.

    Raises:
        ValueError: an unknown suite.
    """
    if suite not in SUITES:
        raise ValueError(f"suite={suite!r} is unknown; choose one of {', '.join(SUITES)}.")
    longer = 8 if suite == "full" else 1
    problems = [*smooth_problems(longer), *singular_problems(longer), *small_network_problems(longer)]
    if suite == "full":
        return [*problems, *class_problems([("1k", 1), ("10k", 0), ("10k", 1)])]
    if suite == "gpu":
        return [*problems, *class_problems([("10k", 0), ("100k", 0), ("1M", 0)])]
    return problems


def _of_groups(problems: Sequence[Problem], groups: Sequence[str]) -> Sequence[Problem]:
    known = list(dict.fromkeys(problem.group for problem in problems))
    for group in groups:
        if group not in known:
            raise ValueError(f"group={group!r} is unknown; choose one of {', '.join(known)}.")
    return [problem for problem in problems if not groups or problem.group in groups]


def solve(problem: Problem) -> list[Row]:
    """Sweeps the anchors of a problem and puts each estimate beside its answer."""
    start = time.perf_counter()
    facts = sweep(problem.loss_fn, problem.bank, problem.data, problem.config, key=problem.key, mask=problem.full_mask)
    table = estimates(facts).isel(setting=0)
    seconds = (time.perf_counter() - start) / len(problem.answers)
    rows = []
    for index, answer in enumerate(problem.answers):
        known = answer.expectation() if answer.expectation is not None else None
        found = table.isel(checkpoint=index)
        rows.append(
            Row(
                group=problem.group,
                case=answer.name,
                sampler=problem.config.sampler,
                llc=answer.llc,
                posterior=None if known is None else known.posterior,
                expected=None if known is None else known.chain,
                estimate=float(found["llc"]),
                stderr=float(found["llc_stderr"]),
                num_chains=int(np.asarray(found["num_chains_used"])),
                tolerance=answer.tolerance,
                verdict=str(found["verdict"].item()),
                peers=answer.peers,
                note=answer.note,
                seconds=seconds,
            )
        )
    return rows
