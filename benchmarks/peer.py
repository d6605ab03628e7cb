"""Another library beside ours: a worker in that library's own Python environment, asked in turn with our side.

The environment variable `LLCJAX_PEER_PYTHON` names a Python that has torch and the peer, for example made by

    python3 -m venv .peer && .peer/bin/pip install torch==2.13.0 && .peer/bin/pip install devinterp==1.3.2
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llcjax.config import SweepConfig

PYTHON = "LLCJAX_PEER_PYTHON"


class Peer:
    """A worker process that takes a job a line and answers with a line, both JSON; it idles while our side runs."""

    def __init__(self, worker: str) -> None:
        """Starts `benchmarks/WORKER.py` in the peer's environment.

        Raises:
            SystemExit: there is no such environment; the sentence says how to make one.
        """
        python = os.environ.get(PYTHON)
        if not python or not Path(python).exists():
            raise SystemExit(f"skipped: {PYTHON} must name a Python that has torch and the peer; see {__file__}.")
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(f"{worker}.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.versions: dict[str, str] = self._read()

    def ask(self, **job: Any) -> dict[str, Any]:
        """Sends a job and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._read()

    def estimate(
        self, model: str, arrays: Mapping[str, Any], config: SweepConfig, *, seed: int, sliced: bool = True
    ) -> tuple[float, float]:
        """LLC and seconds of the peer on a network, with the numbers of one of our own configurations.

        Args:
            model: what the worker calls it.
            arrays: its parameters, and `inputs` and `targets`.
            config: one setting of SGLD.
            seed: of the peer's chains.
            sliced: whether batches are sliced from memory instead of collated by torch's DataLoader.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.npz"
            np.savez(file, **arrays)
            names = ("batch_size", "num_chains", "num_draws", "num_burnin_steps")
            numbers = {name: getattr(config, name) for name in names} | dataclasses.asdict(config.settings[0])
            answer = self.ask(model=model, file=str(file), seed=seed, sliced=sliced, **numbers)
        return answer["llc"], answer["seconds"]

    def close(self) -> None:
        """Ends the worker."""
        self._process.terminate()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker in {os.environ[PYTHON]} ended without an answer; run it by hand to see why.")
        return json.loads(line)
