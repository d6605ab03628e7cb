"""Stopping in an orderly way: Ctrl-C and SIGTERM ask, a second Ctrl-C insists."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType

PREEMPTED_EXIT_CODE = 75
"""Exit code of the command line after SIGTERM (EX_TEMPFAIL of sysexits.h: the same command would succeed later)."""


class Interrupted(Exception):
    """The user asked to stop; everything up to here is saved, and the same call goes on from there."""


class Preempted(Interrupted):
    """SIGTERM asked to stop, as batch systems send it before they take a machine away; all is saved as well."""


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of what a `StopRequest` finishes first; no `except Exception` takes it for a broken file."""


@contextlib.contextmanager
def sigterm_raises() -> Generator[None]:
    """Context in which SIGTERM raises `Terminated` wherever no `StopRequest` takes it, as while a program compiles."""

    def terminated(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        raise Terminated("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """Context in which the first Ctrl-C, and every SIGTERM, sets `requested` instead of raising or ending the process.

    A SIGTERM that came so late that everything was finished first is passed on at the end, because what follows would
    not know of it. Outside the main thread, where Python allows no signal handlers, both keep their usual meaning.
    """

    def __init__(self) -> None:
        self.requested = False
        self._by_sigterm = False

    def __enter__(self) -> StopRequest:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._in_main_thread:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            if self._by_sigterm and kind is None:
                signal.raise_signal(signal.SIGTERM)

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
