"""One sentence for an argument of the wrong kind or out of range; every public function asks the same way."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

MOST = 2**31 - 1
"""Largest count: steps, chains and draws are 32-bit numbers on the devices."""
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
"""Numbers beyond these are infinite or zero on the devices."""


def shown(value: Any) -> str:
    """A value as it is typed, cut where it is long, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def count(name: str, value: Any, least: int = 0, most: int = MOST) -> int:
    """A whole number between two bounds.

    Raises:
        ValueError: another kind of value, or out of range.

    Example:
        >>> count("num_chains", True, 1)
        Traceback (most recent call last):
        ValueError: num_chains=True must be a whole number of at least 1.
    """
    try:
        whole = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < least:
        raise ValueError(f"{name}={shown(value)} must be a whole number of at least {least}.")
    if whole > most:
        raise ValueError(f"{name}={shown(value)} is too many; it must be at most {most:,}.")
    return whole


def number(name: str, value: Any, words: str = "", *, above: float | None = None, least: float = 0.0) -> float:
    """A finite number, at least `least` and above a bound where one is given, neither infinite nor zero as float32.

    Raises:
        ValueError: another kind of value, or out of range; `words` say what it must be.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name}={shown(value)} must be {words or _number_words(above)}.")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or found < least or (above is not None and not found > above):
        raise ValueError(f"{name}={found:g} must be {words or _number_words(above)}.")
    if abs(found) > LARGEST or 0 < abs(found) < SMALLEST:
        raise ValueError(f"{name}={found:g} is beyond float32, which has {SMALLEST:.3g} to {LARGEST:.3g}.")
    return found


def _number_words(above: float | None) -> str:
    return "a finite number, 0 or more" if above is None else f"a finite number above {above:g}"


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={shown(value)} is unknown; choose one of {', '.join(choices)}.")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={shown(value)} must be True or False.")
    return bool(value)


def instance(name: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    """A value of a class.

    Raises:
        ValueError: one of another class; `words` say what it must be.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} is of type {type(value).__name__}; give {words}.")


def function(name: str, value: Any, words: str) -> None:
    """Something to call.

    Raises:
        ValueError: it cannot be called; `words` say what it must be.
    """
    if not callable(value):
        raise ValueError(f"{name} is of type {type(value).__name__}; give a function {words}.")


def path(name: str, value: Any) -> Path:
    """The path of a file or folder.

    Raises:
        ValueError: neither text nor a path.
    """
    if not isinstance(value, (str, PathLike)) or "\0" in os.fspath(value):
        raise ValueError(f"{name}={shown(value)} is no path; give the name of a file or folder.")
    return Path(value)


def reals(name: str, value: Any) -> np.ndarray:
    """Numbers as a float64 array.

    Raises:
        ValueError: something else, or numbers that float64 does not hold.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"type {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be an array of numbers, but it is {shown(value)} ({error}).") from None
