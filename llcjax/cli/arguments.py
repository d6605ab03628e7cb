"""How the arguments of every command are read."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

Options = TypeVar("Options")


def parse(options: type[Options], arguments: list[str], prog: str, default: Options | None = None) -> Options:
    """Parses options; a value that a config refuses ends as its own sentence, not in tyro's box."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if default is None:
                return tyro.cli(options, args=arguments, prog=prog)
            return tyro.cli(options, args=arguments, prog=prog, default=default)
    except SystemExit as stop:
        cause = stop.__context__
        while cause is not None and not isinstance(cause, ValueError):
            cause = cause.__context__
        if cause is not None:
            raise ValueError(str(cause)) from None
        print(printed.getvalue(), end="", file=sys.stderr)
        raise


def shell(arguments: Sequence[str]) -> str:
    """What to type to do the same again."""
    return shlex.join(["llcjax", *arguments])


def last_option(arguments: list[str], flag: str) -> str | None:
    """The last value of an option that decides the defaults of others, before all of them are parsed."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    return found
