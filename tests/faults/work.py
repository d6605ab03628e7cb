"""Small work to break: a sweep and a training of a network of two layers, run in children that are cheap to start."""

import contextlib
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import llcjax
from llcjax import processes
from llcjax.checkpoints import CheckpointBank, load_bank, save_bank
from llcjax.config import SweepConfig
from llcjax.interrupt import PREEMPTED_EXIT_CODE, Interrupted, Preempted, Terminated, sigterm_raises
from llcjax.sweep import sweep
from llcjax.train import TrainConfig, finish_training, train

ROOT = Path(__file__).parents[2]
SWEEP = SweepConfig(
    n_beta=(10.0, 30.0), localization=1.0, step_size=1e-3, num_chains=2, num_draws=60, draws_per_chunk=5, batch_size=8,
    runs_per_launch=8, eval_every=20, num_control_draws=2,
)  # fmt: skip
TRAIN = TrainConfig(num_steps=40, batch_size=8, num_log_checkpoints=0, num_linear_checkpoints=21)


def network(params, batch):
    x, y = batch
    return (jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2


def weights(key):
    return {"first": jax.random.normal(key, (3, 5)), "second": jnp.ones(5)}


def sample(key, size):
    x = jax.random.normal(key, (size, 3))
    return x, jnp.sin(x[:, 0])


def checkpoints(count=6):
    random = np.random.default_rng(0)
    params = {"first": random.normal(size=(count, 3, 5)), "second": random.normal(size=(count, 5))}
    return CheckpointBank(params=params, steps=np.arange(count))


def examples():
    x = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    return x, np.sin(x[:, 0])


def sweep_into(folder, begun=None, *, loss=network, bank=None, num_devices=1, **options):
    """The sweep that is broken; its state is saved after every chunk. `begun` is called at the first of them."""
    told = []

    def on_chunk(_):
        if begun is not None and not told:
            told.append(begun())

    devices = jax.local_devices()[:num_devices]
    options = {"out": folder / "sweep", "on_chunk": on_chunk, "save_every_seconds": 0, **options}
    return sweep(loss, bank or checkpoints(), examples(), SWEEP, devices=devices, **options)


def train_into(folder, begun=None):
    """The training that is broken, skipped where its bank is there, as the pipeline does it."""
    if begun is not None:
        begun()
    with contextlib.suppress(ValueError):
        return load_bank(folder / "bank")
    bank = train(weights, network, sample, TRAIN, work_dir=folder / "training", save_every_seconds=0, progress=False)[0]
    save_bank(bank, folder / "bank")
    finish_training(folder / "training")
    return bank


def swept_arrays(folder):
    """Name -> bytes of everything that the store of a sweep holds."""
    facts = llcjax.open_sweep(folder / "sweep")
    return {str(name): facts[name].values.tobytes() for name in facts.variables}


def trained_arrays(folder):
    """Name -> bytes of everything that the bank of a training holds."""
    bank = load_bank(folder / "bank")
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(bank.params)}
    return {name: leaf.tobytes() for name, leaf in {**arrays, "steps": bank.steps, **bank.metrics}.items()}


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Child:
    """Work in a process of its own, forked from a server that has imported everything and has no device yet."""

    _server = None

    def __init__(self, work, *arguments, place=None, **options):
        """Starts it, as process `place` = (port, how many, which) where several belong together."""
        self._states, there = _context().Pipe(duplex=False)
        self.process = _context().Process(target=_run, args=(there, place, work, arguments, options))
        self.process.start()
        there.close()

    def wait_for(self, state):
        """Waits until the child is `ready` for signals or its work has `begun`, or until it has ended; the moment."""
        with contextlib.suppress(EOFError):
            while self._states.recv() != state:
                pass
        return time.monotonic()

    def end(self, timeout=300.0):
        """Waits for the end; the exit code (negative: the signal)."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"a child still runs after {timeout} s")
        return self.process.exitcode

    def signal_after(self, seconds, number):
        """Sends a signal `seconds` from now, unless the child has ended before; whether it was sent."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
                return True
        return False


def _context():
    if Child._server is None:
        os.environ["PYTHONPATH"] = str(ROOT)  # of the server, which does not inherit sys.path
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        Child._server = multiprocessing.get_context("forkserver")
        Child._server.set_forkserver_preload(["tests.faults.work"])
    return Child._server


def _run(states, place, work, arguments, options):
    try:
        if place is not None:
            port, count, index = place
            names = (processes.ADDRESS, processes.COUNT, processes.INDEX)
            processes.join(dict(zip(names, (f"localhost:{port}", str(count), str(index)), strict=True)))
        with sigterm_raises():  # as the command line does
            states.send("ready")
            work(*arguments, begun=lambda: states.send("begun"), **options)
    except (Preempted, Terminated):
        sys.exit(PREEMPTED_EXIT_CODE)
    except Interrupted:
        sys.exit(130)
