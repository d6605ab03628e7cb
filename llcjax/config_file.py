"""A sweep configuration in a JSON file: written by `llcjax calibrate`, taken by `--config`."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from llcjax import checks
from llcjax.config import SweepConfig, as_dict
from llcjax.untrusted import read_json, reason


def save_sweep_config(config: SweepConfig, path: Path | str) -> Path:
    """Writes every field of a configuration as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_dict(config), indent=1) + "\n")
    return path


def load_sweep_config(path: Path | str, default: SweepConfig | None = None) -> SweepConfig:
    """Reads a configuration; fields that the file leaves out keep the values of `default`.

    Args:
        path: a JSON object whose keys are fields of `SweepConfig`.
        default: where the other fields come from; None takes the defaults of `SweepConfig`.

    Raises:
        ValueError: no such file, no JSON object, an unknown field, or a value of the wrong type or range.

    Example:
        >>> import tempfile
        >>> path = save_sweep_config(SweepConfig(step_size=2e-5), Path(tempfile.mkdtemp()) / "calibrated.json")
        >>> load_sweep_config(path).step_size
        (2e-05,)
    """
    checks.path("config", path)
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"config={path} cannot be read as JSON ({reason(error)}); give an object whose keys are fields of the "
            "sweep, as `llcjax calibrate` writes it."
        ) from None
    hints = typing.get_type_hints(SweepConfig)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"config={path} has the unknown field {name!r}; fields are: {', '.join(hints)}.")
        if not _fits(value, hints[name]):
            raise ValueError(f"config={path} has {name}={value!r:.200}, which is not {_words(hints[name])}.")
    try:
        return dataclasses.replace(default or SweepConfig(), **values)
    except ValueError as error:
        raise ValueError(f"config={path}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the type of a field; a number stands for a tuple of one number."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return value in parts
    if kind is types.UnionType:
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return all(_fits(item, float) for item in (value if isinstance(value, list) else [value]))
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, float) for item in value.values())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _words(hint: Any) -> str:
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if kind is types.UnionType:
        return " or ".join(_words(part) for part in parts)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return {tuple: "a list of numbers", dict: "an object of numbers"}.get(kind, names.get(hint, str(hint)))
