"""Another library beside ours: a worker in that library's own Python environment, asked in turn with our side.

The environment variable `LLCJAX_PEER_PYTHON` names a Python that has torch and the peer, for example made by

    python3 -m venv .peer && .peer/bin/pip install torch==2.13.0 && .peer/bin/pip install devinterp==1.3.2
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

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
