"""Where the time of a chain step goes, part by part, forward and backward, from jax's profiler.

Each instruction of the compiled program says in its metadata which part of the model or of the sampler it came from;
the profiler says how long each ran. A fused instruction counts as the part of its last operation, so that the border
between two neighbours is soft. Where a part takes far longer than its arithmetic and its memory traffic need, that is
where there is something to gain.
"""

from __future__ import annotations

import collections
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A command buffer would run as one, and hide its instructions from the profiler; read when jax starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="

import jax
import numpy as np

from benchmarks.harness import Measured, Options, Row, run
from llcjax.bench import WORKLOADS, launch_config, own_precision, suitable_workloads
from llcjax.checkpoints import bank_of
from llcjax.config import Precision
from llcjax.job import Job, launch_args
from llcjax.launch import plan_launches
from llcjax.plan import Plan
from llcjax.sweep import make_job

PARTS = ("noise", "update", "batch", "embed", "norm", "qkv", "attention", "output", "mlp", "unembed")
REST = "loss and the rest"
_SMALL = ("toy", "mlp")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = .*?op_name=\"(?P<scope>[^\"]*)\"", re.MULTILINE)


def part_of(scope: str) -> str:
    """The part of a step that an instruction belongs to, the innermost that its scope names.

    Example:
        >>> part_of("jit(f)/while/body/vmap(transpose(jvp(mlp)))/dot_general")
        'mlp, backward'
        >>> part_of("jit(f)/while/body/vmap(jvp(norm))/mul"), part_of("jit(f)/while/body/vmap(update)/noise/mul")
        ('norm', 'noise')
    """
    named = [word for word in re.findall(r"\w+", scope) if word in PARTS]
    part = named[-1] if named else REST
    return f"{part}, backward" if "transpose(" in scope and part != "noise" else part


def durations(job: Job) -> tuple[dict[str, float], float, Plan]:
    """Microseconds of a chain step by part, of a whole chain step without the profiler, and the plan of the launch."""
    plan, program = plan_launches(job, np.arange(job.num_groups)), job.program()
    states, *rest = launch_args(job, program, np.arange(plan.groups_per_launch), plan.runs_per_launch)
    scopes = {_plain(found["name"]): found["scope"] for found in _INSTRUCTION.finditer(program.text(states, *rest))}
    steps = plan.runs_per_launch * plan.draws_per_chunk * job.config.num_steps_between_draws
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        states, _ = jax.block_until_ready(program.advance(states, *rest))
        seconds.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            states, _ = jax.block_until_ready(program.advance(states, *rest))
        parts: dict[str, float] = collections.defaultdict(float)
        for name, duration in _events(Path(folder)):
            parts[part_of(scopes.get(_plain(name), ""))] += 1e6 * duration / steps
    return dict(parts), 1e6 * statistics.median(seconds[1:]) / steps, plan


def _plain(name: str) -> str:
    """The name of an instruction as a kernel has it."""
    return name.replace(".", "_")


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Names of the instructions that ran, and their seconds: of a GPU what its streams ran, of a CPU its threads."""
    (file,) = folder.rglob("*.xplane.pb")
    gpu = jax.default_backend() == "gpu"
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            if gpu and not ("GPU" in plane.name and "Stream" in line.name):
                continue
            for event in line.events:
                name = _instruction(event)
                if gpu or name is not None:
                    yield name or event.name, event.duration_ns * 1e-9


def _instruction(event: Any) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the type of the statistics, which is jaxlib's affair
        return next((str(value) for name, value in event.stats if name == "hlo_op"), None)


def rows(name: str, precision: Precision, runs: int, num_draws: int) -> list[Row]:
    """One row a part of the step, and their sum."""
    work = WORKLOADS[name]()
    config = launch_config(work, runs, num_draws, precision)
    parts, whole, plan = durations(make_job(work.loss_fn, bank_of(work.params), work.data, config))
    busy, common = sum(parts.values()), {"workload": name, "precision": precision, "chains": plan.runs_per_launch}
    found = []
    for part in (*PARTS, REST):
        forward, backward = parts.get(part, 0.0), parts.get(f"{part}, backward", 0.0)
        if forward or backward:
            found.append({
                **common, "part": part, "forward (us)": forward, "backward (us)": backward,
                "share (%)": 100 * (forward + backward) / busy,
            })  # fmt: skip
    found.sort(key=lambda row: -row["share (%)"])
    total = {"part": "all that ran", "forward (us)": busy, "backward (us)": None, "share (%)": 100.0}
    clock = {"part": "by the clock", "forward (us)": whole, "backward (us)": None, "share (%)": 100 * whole / busy}
    return [*found, {**common, **total}, {**common, **clock}]


def measure(options: Options) -> Measured:
    """The regression transformer, on a GPU also the language model; `--only` takes workloads by name."""
    cpu = jax.default_backend() == "cpu"
    if options.toy:
        names: tuple[str, ...] = ("toy",)
    else:
        names = options.only or (("regression",) if cpu else tuple(n for n in suitable_workloads() if n not in _SMALL))
    found = []
    for name in names:
        runs = 4 if cpu or name.startswith("language") else 64
        found += rows(name, own_precision(name), runs, 3 if cpu else 20)
    return Measured(
        title="Where the time of a chain step goes",
        rows=found,
        settings={"draws": 3 if cpu else 20},
        notes=[
            "Microseconds of a step of one chain. "
            + (
                "An instruction may use several cores, and several may run at once."
                if cpu
                else "The rest is idle time."
            )
        ],
    )


if __name__ == "__main__":
    run("breakdown", measure)
