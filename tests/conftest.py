"""Four simulated devices, so that sharding is tested on any machine."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# scipy's BLAS threads get in the way of those of jax on few cores: small fits become many times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pathlib import Path

import jax
import numpy as np
import pytest

from llcjax.checkpoints import CheckpointBank


def pytest_configure(config):
    """Programs of tests run for milliseconds and compile for seconds, on a CPU twice as fast without optimisation."""
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"


@pytest.fixture
def one_device():
    return jax.local_devices()[:1]


@pytest.fixture
def shared_data():
    """Folder of data that is never committed; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    return folder


@pytest.fixture
def quadratic_bank():
    """Five checkpoints of a seven-dimensional quadratic, away from its minimum."""
    params = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 0.1
    return CheckpointBank(params=params, steps=np.arange(5) * 10)
