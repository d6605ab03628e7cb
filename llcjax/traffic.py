"""Bytes that a compiled program reads and writes, beside those of kernels (`llcjax.work`).

A compiler counts what its own instructions read and write: each array once an instruction, of a slice only what is
taken. It counts nothing for what a library does in its stead; that is added here, each operand and result once. A loop
counts once, however often it runs. What stays in a cache between two instructions counts as if it were moved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?(?P<name>%?[\w.-]+) = (?P<shape>\([^()]*\)|\S+) (?P<call>.*)$", re.MULTILINE)
_LIBRARY = re.compile(r'custom-call\((?P<operands>[^)]*)\).*custom_call_target="__(?:cublas|cudnn)')
_ARRAY = re.compile(r"\b(?P<kind>[a-z]+)(?P<bits>\d*)\w*\[(?P<sizes>[\d,]*)\]")
_WORKSPACES = ("s8", "u8")
"""What cuBLAS and cuDNN work in, as one axis; none of our arrays is of these dtypes."""


def program_bytes(compiled: Any) -> float | None:
    """Bytes of a pass through a program, on each of its devices; None where the compiler does not say.

    Args:
        compiled: what `jax.jit(...).lower(...).compile()` returns.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program_bytes(jax.jit(lambda x: x + 1).lower(jnp.zeros(100)).compile())
        800.0
    """
    facts = compiled.cost_analysis() or {}
    facts = facts[0] if isinstance(facts, list) else facts
    counted = facts.get("bytes accessed")
    return None if counted is None else float(counted) + sum(library_bytes(compiled.as_text() or ""))


def library_bytes(text: str) -> Iterator[int]:
    """Bytes of each call of a library in the text of a compiled program."""
    shapes, calls = {}, []
    for found in _INSTRUCTION.finditer(text):
        shapes[found["name"]] = found["shape"]
        call = _LIBRARY.match(found["call"])
        if call is not None:
            operands = re.sub(r"/\*.*?\*/", "", call["operands"])
            calls.append((found["name"], *re.findall(r"%?[\w.-]+", operands)))
    for names in calls:
        yield sum(_nbytes(shapes.get(name, "")) for name in names)


def _nbytes(shape: str) -> int:
    """Of all arrays that a shape names.

    Example:
        >>> _nbytes("(f32[4,512]{1,0}, bf16[3]{0}, pred[], s8[4194304]{0})")
        8199
    """
    total = 0
    for array in _ARRAY.finditer(shape):
        if array["kind"] + array["bits"] not in _WORKSPACES or "," in array["sizes"]:
            size = math.prod(int(size) for size in array["sizes"].split(",") if size)
            total += size * max(1, int(array["bits"] or 8) // 8)
    return total
