"""The attributes of a sweep's store, checked where it is opened, so that all who read them may trust their types."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    """Whether a text holds a JSON object."""
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


def _config(value: Any) -> bool:
    """Whether a text holds the config of a sweep, as far as estimates look at it."""
    if not _object(value):
        return False
    facts = json.loads(value)
    decay = [facts.get(name, 1.0) for name in ("step_size_decay", "step_size_decay_time")]
    return isinstance(facts.get("sampler", ""), str) and all(_number(one) and math.isfinite(one) for one in decay)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _features(value: Any) -> bool:
    def is_one(feature: Any) -> bool:
        return isinstance(feature, list) and len(feature) == 2 and _text(feature[0]) and isinstance(feature[1], list)

    return isinstance(value, list) and all(is_one(one) and all(map(_count, one[1])) for one in value)


NEEDED: Mapping[str, Callable[[Any], bool]] = {
    "config": _config, "provenance": _object, "fingerprint": _text, "num_burnin_steps": _count, "num_params": _number,
    "wall_seconds": _number,
}  # fmt: skip
FURTHER: Mapping[str, Callable[[Any], bool]] = {
    "bank": _text, "chance": _number, "num_examples": _count, "components": _texts, "features": _features,
    "rerun": _text,
}  # fmt: skip


def check_facts(attrs: Mapping[str, Any], path: Path) -> None:
    """Refuses a store whose attributes are not what a sweep writes.

    Args:
        attrs: the attributes.
        path: of the store, for the sentence.

    Raises:
        ValueError: one is missing or of another kind; the sentence names it.
    """
    for name, fits in {**NEEDED, **FURTHER}.items():
        if name in attrs:
            if not fits(attrs[name]):
                raise ValueError(f"{path} is a corrupt store: its {name} is {attrs[name]!r:.100}; sweep again.")
        elif name in NEEDED:
            raise ValueError(f"{path} is a corrupt store: it lacks the fact {name!r}; sweep again.")
