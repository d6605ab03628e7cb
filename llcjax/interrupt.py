"""Stopping in an orderly way: Ctrl-C and SIGTERM ask, a second Ctrl-C insists."""

from __future__ import annotations

import signal
import threading
from types import FrameType

PREEMPTED_EXIT_CODE = 75
"""Exit code of the command line after SIGTERM (EX_TEMPFAIL of sysexits.h: the same command would succeed later)."""


class Interrupted(Exception):
    """The user asked to stop; everything up to here is saved, and the same call goes on from there."""


class Preempted(Interrupted):
    """SIGTERM asked to stop, as batch systems send it before they take a machine away; all is saved as well."""


class StopRequest:
    """Context in which the first Ctrl-C, and every SIGTERM, sets `requested` instead of raising or ending the process.

    Outside the main thread, where Python allows no signal handlers, both keep their usual meaning.
    """

    def __init__(self) -> None:
        self.requested = False
        self._by_sigterm = False

    def __enter__(self) -> StopRequest:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main_thread:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def stopped(self, sentence: str) -> Interrupted:
        """The exception to raise once everything is saved; its type tells who asked."""
        return (Preempted if self._by_sigterm else Interrupted)(sentence)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if signum == signal.SIGTERM:
            self._by_sigterm = True
        elif self.requested:
            raise KeyboardInterrupt
        self.requested = True
