"""Another library beside ours: a worker in that library's own Python environment, asked in turn with our side.

An environment variable names the Python of each, one that has

    LLCJAX_PEER_PYTHON      torch==2.13.0 and devinterp==1.3.2
    LLCJAX_PEER_DEVINTERP2  torch==2.13.0 and devinterp==2.0.1
    LLCJAX_PEER_CANONICAL   torch==2.13.0 and canonical-interp==0.2.7, which needs Python 3.12
    LLCJAX_PEER_BLACKJAX    jax==0.10.1 and blackjax==1.7.1

for example `.peer/bin/python` after `python3 -m venv .peer && .peer/bin/pip install torch==2.13.0 && .peer/bin/pip
install devinterp==1.3.2`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llcjax.config import SweepConfig

PYTHONS = {
    "devinterp_worker": "LLCJAX_PEER_PYTHON",
    "torch_worker": "LLCJAX_PEER_PYTHON",
    "devinterp2_worker": "LLCJAX_PEER_DEVINTERP2",
    "canonical_worker": "LLCJAX_PEER_CANONICAL",
    "blackjax_worker": "LLCJAX_PEER_BLACKJAX",
}
"""Worker -> the environment variable that names its Python."""


class PeerError(RuntimeError):
    """A peer raised an error of its own."""


class Peer:
    """A worker process that takes a job a line and answers with a line, both JSON; it idles while our side runs."""

    def __init__(self, worker: str) -> None:
        """Starts `benchmarks/WORKER.py` in the peer's environment.

        Raises:
            SystemExit: there is no such environment; the sentence says how to make one.
        """
        python = os.environ.get(PYTHONS[worker])
        if not python or not Path(python).exists():
            raise SystemExit(f"skipped: {PYTHONS[worker]} must name a Python that has the peer; see {__file__}.")
        self._command = [python, "-m", f"benchmarks.{worker}"]
        self._process = subprocess.Popen(
            self._command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # the device is shared with our side
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.versions: dict[str, Any] = self._read()

    def ask(self, **job: Any) -> dict[str, Any]:
        """Sends a job and waits for its answer.

        Raises:
            PeerError: the peer could not do it.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def answer(
        self, model: str, file: str, config: SweepConfig, *, seed: int, sliced: bool = True, **choices: Any
    ) -> dict[str, Any]:
        """What the peer finds on a stored network with the numbers of one of our own configurations.

        Args:
            model: what the worker calls it.
            file: of `stored` arrays.
            config: one setting of SGLD.
            seed: of the peer's chains.
            sliced: whether batches are sliced from memory instead of collated by torch's DataLoader.
            choices: further options of the worker, or numbers of the configuration that it shall have otherwise.

        Returns:
            The worker's answer: `llc`, `seconds`, and the mean loss of all data at the start, `loss at start`.
        """
        names = ("batch_size", "num_chains", "num_draws", "num_burnin_steps", "precision")
        numbers = {name: getattr(config, name) for name in names} | dataclasses.asdict(config.settings[0])
        return self.ask(model=model, file=file, seed=seed, sliced=sliced, **{**numbers, **choices})

    def estimate(
        self, model: str, arrays: Mapping[str, Any], config: SweepConfig, *, seed: int, sliced: bool = True
    ) -> tuple[float, float]:
        """LLC and seconds of the peer on a network of parameters, `inputs` and `targets`; see `answer`."""
        with stored(arrays) as file:
            answer = self.answer(model, file, config, seed=seed, sliced=sliced)
        return answer["llc"], answer["seconds"]

    def close(self) -> None:
        """Ends the worker."""
        self._process.terminate()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)} ended without an answer; run it by hand to see why.")
        return json.loads(line)


@contextlib.contextmanager
def stored(arrays: Mapping[str, Any]) -> Iterator[str]:
    """A file of a network's parameters, `inputs` and `targets`, for as long as it is asked about."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.npz")
        np.savez(file, **arrays)
        yield file
