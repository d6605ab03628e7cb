"""Chain-steps a second on 1, 2, 4, ... devices of this host: the same chains (strong) and as many a device (weak).

The regression transformer on a GPU, in plain jax and by kernels; the toy network on a CPU, where eight devices are
simulated and share the cores: no gain is possible there, and what the table shows is what sharding costs. Chains never
talk to each other, so the loss against the ideal is that of launching a program on several devices, and of smaller
launches (strong).
"""

from __future__ import annotations

import os

import jax

from benchmarks.harness import Measured, Options, Row, run
from llcjax.bench import throughput
from llcjax.config import Precision

SIMULATED = 8


def counts() -> list[int]:
    """1, 2, 4, ... up to the devices of this host."""
    available = jax.local_device_count()
    return [count for count in (1, 2, 4, 8, 16) if count <= available]


def chain_steps(name: str, devices: list[jax.Device], runs: int, num_draws: int) -> float:
    """Chain-steps a second of a launch of so many chains on some devices."""
    precision: Precision = "highest" if devices[0].platform == "cpu" else "tf32"
    seen = throughput(name, runs, precision=precision, num_draws=num_draws, devices=devices)
    assert seen.runs == runs
    return seen.chain_steps


def rows(name: str, most_runs: int, num_draws: int) -> list[Row]:
    """One row a number of devices; `most_runs` are shared by all of them, or run on each."""
    devices, found = jax.local_devices(), []
    one = chain_steps(name, devices[:1], most_runs, num_draws)
    for count in counts():
        strong = one if count == 1 else chain_steps(name, devices[:count], most_runs, num_draws)
        weak = one if count == 1 else chain_steps(name, devices[:count], most_runs * count, num_draws)
        found.append({
            "workload": name,
            "devices": count,
            "chains, strong": most_runs,
            "chain-steps a second, strong": strong,
            "times one device, strong": strong / one,
            "chains, weak": most_runs * count,
            "chain-steps a second, weak": weak,
            "times one device, weak": weak / one,
        })  # fmt: skip
    return found


def measure(options: Options) -> Measured:
    """The workloads that suit the device; `--only` takes others by name."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        flag = f" --xla_force_host_platform_device_count={SIMULATED}"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag  # read when jax first looks for devices
    cpu = jax.default_backend() == "cpu"
    names, runs, draws = (("toy",), 64, 400) if cpu else (("regression", "regression-pallas-fp16"), 256, 100)
    names = options.only or names
    if options.toy:
        runs, draws = 16, 3
    return Measured(
        title="Chain-steps a second against the number of devices",
        rows=[row for name in names for row in rows(name, runs, draws)],
        settings={"cores": os.cpu_count(), "simulated": cpu},
        notes=[f"Devices of a CPU are simulated: all share its {os.cpu_count()} cores."] if cpu else [],
    )


if __name__ == "__main__":
    run("scaling", measure)
