"""What every reader of a file from elsewhere asks before it trusts what the file says of itself."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

FREE, RATIO = 2**28, 100
"""Bytes that any file may unpack to, and how many times its own size a larger one may."""
_MOST_WORDS = 300


def check_expansion(name: str, stored: int, unpacked: int) -> None:
    """Refuses a small file that would fill the memory.

    Weights and tokens pack 1 to 5 times smaller; what packs 1,000 times smaller is all zeros, or made to harm.

    Args:
        name: of the file, for the sentence.
        stored: its bytes on disk.
        unpacked: the bytes that it says it holds.

    Raises:
        ValueError: more than `FREE` bytes, and more than `RATIO` times what is stored.

    Example:
        >>> check_expansion("weights.npz", 10**9, 2 * 10**9)
    """
    if unpacked > max(FREE, RATIO * stored):
        raise ValueError(
            f"{name} has {stored:,} bytes on disk but says that it holds {unpacked:,}, as files do that are made "
            "to fill the memory; store it without compression if it is right."
        )


def stored_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def reason(error: BaseException) -> str:
    """What went wrong, in one line: the messages of libraries may have many."""
    words = " ".join(str(error).split())
    words = words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + " ..."
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def read_json(path: Path | str | PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: no such file.
        ValueError: no JSON in UTF-8, no object, a name that is there twice, or nested too deep to be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "facts.json"
        >>> _ = path.write_text('{"a": 1, "a": 2}')
        >>> read_json(path)
        Traceback (most recent call last):
        ValueError: the name 'a' is there twice
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} is there twice")
        found[name] = value
    return found
