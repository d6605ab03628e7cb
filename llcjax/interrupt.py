"""Stopping in an orderly way: the first Ctrl-C asks, the second insists."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """The user asked to stop; everything up to here is saved, and the same call goes on from there."""


class StopRequest:
    """Context in which the first Ctrl-C sets `requested` instead of raising.

    Outside the main thread, where Python allows no signal handlers, Ctrl-C keeps its usual meaning.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
