"""How a sweep is cut: groups (a checkpoint at a setting, all its chains) into launches that fit memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import jax

from llcjax import _compat
from llcjax.config import SweepConfig

MEMORY_SHARE = 0.85
"""Share of a device's memory that a launch may use."""

# Work of one step of a launch beyond which a device gains nothing from more runs, in floating-point operations; the
# knee of the throughput curve (benchmarks/throughput.py). Memory is no guide: long before it is full, a GPU is busy
# and a CPU's caches have spilled.
FULL_STEP = {"cpu": 2e9, "gpu": 8e11, "tpu": 8e11}
LEAST_RUNS, MOST_RUNS = {"cpu": 4, "gpu": 4, "tpu": 4}, {"cpu": 64, "gpu": 8192, "tpu": 8192}
RUNS_OF_UNKNOWN_WORK = {"cpu": 16, "gpu": 128, "tpu": 128}


def most_runs(step_flops: float, platform: str | None = None) -> int:
    """Runs on one device at the knee of the throughput curve.

    Args:
        step_flops: floating-point operations of the products of a step of one chain; 0 where there are none.
        platform: cpu, gpu or tpu; None takes the default backend.
    """
    platform = platform or jax.default_backend()
    platform = platform if platform in FULL_STEP else "gpu"
    if not step_flops:
        return RUNS_OF_UNKNOWN_WORK[platform]
    knee = FULL_STEP[platform] / step_flops
    return int(min(max(knee, LEAST_RUNS[platform]), MOST_RUNS[platform]))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cut of a sweep; it changes speed and memory, never the numbers."""

    num_groups: int
    """(checkpoint, setting) pairs still to run."""
    num_chains: int
    """Chains of each."""
    groups_per_launch: int
    """Groups that run at once; the last launch is padded."""
    runs_per_launch: int
    """Chains that run at once, padding included: a multiple of the devices, at least two on each."""
    draws_per_chunk: int
    """Draws between two visits of the host; the surplus of the last chunk is dropped."""

    @property
    def num_launches(self) -> int:
        """Launches, one after another."""
        return -(-self.num_groups // self.groups_per_launch)

    def of_groups(self, groups: int, num_devices: int) -> Plan:
        """The same sweep with another number of groups at once."""
        runs = padded_runs(groups * self.num_chains, num_devices)
        return dataclasses.replace(self, groups_per_launch=groups, runs_per_launch=runs)


def make_plan(
    config: SweepConfig,
    *,
    num_groups: int,
    draws_per_chunk: int,
    num_devices: int,
    most_runs: int,
    most_groups: int | None = None,
    memory: Callable[[int, int], int] | None,
) -> Plan:
    """Chooses how many groups run at once.

    Args:
        config: the sweep.
        num_groups: (checkpoint, setting) pairs to run.
        draws_per_chunk: draws between two visits of the host.
        num_devices: devices that share a launch.
        most_runs: runs at once that are wished for.
        most_groups: groups that may share a launch at all; None: any.
        memory: `(groups, runs) -> bytes on each device` of a launch, measured by compiling it; None skips the check.

    Returns:
        The plan. The launches are as equal as they can be, so that little is padded.

    Raises:
        ValueError: not even one group fits on the devices.
    """
    alike = min(num_groups, most_groups or num_groups)
    groups = even_parts(alike, max(1, most_runs // config.num_chains))
    limit = memory_limit()
    if memory is not None and limit is not None:
        groups = _shrink_to_fit(groups, alike, config.num_chains, num_devices, memory, limit)
    return Plan(
        num_groups=num_groups,
        num_chains=config.num_chains,
        groups_per_launch=groups,
        runs_per_launch=padded_runs(groups * config.num_chains, num_devices),
        draws_per_chunk=draws_per_chunk,
    )


def padded_runs(runs: int, num_devices: int) -> int:
    """The next width that devices share evenly; never 1 a device, which XLA compiles to another program."""
    return max(2, -(-runs // num_devices)) * num_devices


def memory_limit() -> int | None:
    """Bytes that a launch may use on each device, or None where nobody can tell."""
    device = jax.local_devices()[0]
    limit = _compat.device_memory_bytes(device)
    if limit is None and device.platform == "cpu":
        limit = _host_memory()
    return None if limit is None else int(MEMORY_SHARE * limit)


def _host_memory() -> int | None:
    """Memory of this machine in bytes, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def even_parts(total: int, most: int) -> int:
    """Size of the parts when `total` is cut into the fewest parts of at most `most`, as equal as they can be."""
    parts = -(-total // most)
    return -(-total // parts)


def _shrink_to_fit(
    groups: int,
    num_groups: int,
    num_chains: int,
    num_devices: int,
    memory: Callable[[int, int], int],
    limit: int,
) -> int:
    """Fits a line through the memory of two launches where the first does not fit, and takes what fits."""

    def runs_of(groups: int) -> int:
        return padded_runs(groups * num_chains, num_devices)

    need = memory(groups, runs_of(groups))
    while need > limit:
        smaller = max(1, groups // 4)
        if groups == 1:
            raise ValueError(
                f"one checkpoint with {num_chains} chains needs {need / 2**30:.1f} GiB, but {limit / 2**30:.1f} GiB "
                "may be used; take fewer chains or a smaller batch_size."
            )
        less = memory(smaller, runs_of(smaller))
        slope = max((need - less) / (groups - smaller), 1)
        fitting = int(smaller + (limit - less) / slope)
        groups = even_parts(num_groups, min(max(fitting, 1), groups - 1))
        need = memory(groups, runs_of(groups))
    return groups
