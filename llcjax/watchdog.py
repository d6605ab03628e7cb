"""A device that hangs is reported: nothing else tells it from one that works for long."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Generator
from typing import Self

FIRST_PATIENCE = 600.0
"""Seconds that the first two waits may take before anything is said: the first compiles, and tells nothing."""
LEAST_PATIENCE = 60.0
"""Seconds that every wait may take."""
FACTOR = 20.0
"""How many times as long as the slowest wait before it, by the unit of work, a wait may take."""


class Watchdog:
    """Context in which waits for the devices are watched by a thread, which warns when one takes far too long.

    It ends nothing: work that is merely slow goes on, and the sentence says what to do if the device hangs. It is said
    again each time the wait has doubled.
    """

    def __init__(self, work: str, kept: str) -> None:
        """Takes what is waited for, and what becomes of the results so far, for the sentence."""
        self._work, self._kept = work, kept
        self._slowest: float | None = None  # seconds for one unit of work, once the first wait is over
        self._compiled = False
        self._wait: tuple[float, float] | None = None  # since when, and for how long before it is said
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="llcjax watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextlib.contextmanager
    def waiting(self, amount: float = 1.0) -> Generator[None]:
        """Watches one wait.

        Args:
            amount: of work, in units of which each should take about as long as any other; 0 is taken for one.
        """
        amount, since = amount or 1.0, time.monotonic()
        patience = FIRST_PATIENCE
        if self._slowest is not None:
            patience = max(LEAST_PATIENCE, FACTOR * self._slowest * amount)
        self._wait = (since, patience)
        try:
            yield
        finally:
            self._wait = None
        if self._compiled:
            self._slowest = max(self._slowest or 0.0, (time.monotonic() - since) / amount)
        self._compiled = True

    def _watch(self) -> None:
        said: tuple[float, float] | None = None  # the wait that was reported, and for how long it had lasted
        while not self._ended.wait(min(1.0, LEAST_PATIENCE / 4)):
            if (wait := self._wait) is None:
                continue
            since, patience = wait
            waited = time.monotonic() - since
            if waited > (2 * said[1] if said is not None and said[0] == since else patience):
                said = (since, waited)
                self._say(waited, patience)

    def _say(self, waited: float, patience: float) -> None:
        pid = os.getpid()
        warnings.warn(
            f"the devices are at {self._work} for {waited:.3g} s, which should take less than {patience:.3g} s. "
            f"If they hang, end process {pid} (kill -9 {pid}) and run again: {self._kept}.",
            RuntimeWarning,
            stacklevel=2,
        )
