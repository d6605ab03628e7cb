"""The only file that knows jax versions and platforms.

Everything here exists because releases or backends differ. When a difference disappears, its line goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

REFUSED_JAX = {
    "0.10.2": "wrong matrix products under vmap on the CPU (jax issue 39103)",
    "0.11.0": "crashes on the CPU (jax issue 39257)",
    "0.11.1": "scans with outputs become quadratic (jax issue 40101)",
}
OLDEST_GPU_JAX = (0, 11, 2)

# Each policy spelled out for each platform: jax's own names mean other things on other platforms
# ("high" is TF32 on a GPU and three bfloat16 passes on a TPU), and a CPU has only float32.
MATMUL_PRECISION = {
    "gpu": {"highest": "highest", "tf32": "tensorfloat32", "bf16": "BF16_BF16_F32"},
    "tpu": {"highest": "highest", "tf32": "high", "bf16": "default"},
    "cpu": {"highest": "highest", "tf32": "highest", "bf16": "highest"},
}
CROSS_ENTROPY_KERNEL = "linear_cross_entropy"
"""Begins the name of the forward kernel; the dtype of the logits follows."""


def check_versions(version: str = jax.__version__) -> None:
    """Refuses the releases of jax that are known to compute wrong numbers.

    Raises:
        RuntimeError: this release of jax is on the list of broken ones.
    """
    if version in REFUSED_JAX:
        raise RuntimeError(
            f"jax {version} is refused because of {REFUSED_JAX[version]}; "
            "install jax 0.10.1 (Python 3.11) or jax >= 0.11.2 (Python 3.12)."
        )


def check_device(platform: str | None = None, version: str = jax.__version__) -> None:
    """Refuses a GPU with a jax that gives wrong results there (jax issue 36958).

    Raises:
        RuntimeError: the default backend is a GPU and jax is older than 0.11.2.
    """
    platform = platform or jax.default_backend()
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if platform == "gpu" and numbers < OLDEST_GPU_JAX:
        raise RuntimeError(
            f"jax {version} computes wrong results on a GPU in scan with vmap (jax issue 36958); "
            "install jax >= 0.11.2, or set JAX_PLATFORMS=cpu."
        )


def matmul_precision(policy: str, platform: str | None = None) -> str:
    """Maps a precision policy (`highest`, `tf32`, `bf16`) to jax's name for it on a platform."""
    table = MATMUL_PRECISION.get(platform or jax.default_backend(), MATMUL_PRECISION["gpu"])
    if policy not in table:
        raise ValueError(f"precision={policy!r} is unknown; choose one of {', '.join(table)}.")
    return table[policy]


def compiler_options(lowered: jax.stages.Lowered, platform: str | None = None) -> dict[str, Any] | None:
    """Options of XLA for a program of chains: on a GPU no products by Triton beside a cross-entropy of bfloat16 logits.

    Timed alone, Triton's products seem faster than those of cuBLAS; in a chain step of the language model on one
    NVIDIA H200 that of the logits' gradients with the rows takes 530 us by Triton and 360 by cuBLAS. In TF32 the whole
    step was slower with cuBLAS, as is one of the regression transformer (1% by our kernels, 30% in plain jax).
    """
    if (platform or jax.default_backend()) != "gpu":
        return None
    # Without the elements of large constants, which may be gigabytes.
    module: Any = lowered.compiler_ir()
    text = module.operation.get_asm(large_elements_limit=16)
    return {"xla_gpu_enable_triton_gemm": False} if f"{CROSS_ENTROPY_KERNEL}_bfloat16" in text else None


def run_mesh(devices: list[jax.Device] | None = None, devices_per_run: int = 1) -> Mesh:
    """Mesh over the local devices: its axis `run` has other runs, its axis `model` other parts of the parameters.

    Raises:
        ValueError: the devices cannot be shared out evenly.
    """
    devices = devices or jax.local_devices()
    if len(devices) % devices_per_run:
        raise ValueError(f"devices_per_run={devices_per_run} does not divide the {len(devices)} devices.")
    # Without axis_types jax makes the axes Explicit, which would type every array in a user's loss.
    if devices_per_run == 1:
        return jax.make_mesh((len(devices),), ("run",), axis_types=(AxisType.Auto,), devices=devices)
    shape = (len(devices) // devices_per_run, devices_per_run)
    return jax.make_mesh(shape, ("run", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def shard_runs(function: Callable, mesh: Mesh, in_specs: object, out_specs: object) -> Callable:
    """`jax.shard_map` over the axis `run`, without the check that rejects scans over replicated carries.

    An axis `model` is left to the compiler, which cuts what depends on cut parameters.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False, axis_names={"run"}
    )


def most_of_processes(number: int) -> int:
    """Waits until every process is here, and returns the largest of their numbers."""
    return int(multihost_utils.process_allgather(np.array(number, np.int32)).max())


def enable_compilation_cache() -> None:
    """Keeps programs compiled for an accelerator in a user cache folder, unless the user chose one already.

    Not on the CPU, where reloaded programs complain about machine features that they do not use.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None or jax.default_backend() == "cpu":
        return
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(root / "llcjax" / "xla"))


def device_memory_bytes(device: jax.Device) -> int | None:
    """Memory that one device may use in bytes, or None where the backend does not say (the CPU)."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")
