"""What a function has to do, counted before anything is compiled: operations of its products, bytes of its kernels.

What a compiler counts depends on the device and on its release (on a GPU it counts nothing before it has compiled), and
none counts what a kernel does. Here a function is traced and its products are added up, those inside loops of known
length and inside kernels too; a product of a by b by c is 2abc operations. A loop that stops by a condition counts
once, so that a kernel with one states its own count. What is not a product is left out: it is small beside them, or the
device is bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


class Work(NamedTuple):
    """Counts of a function."""

    flops: float
    """Floating-point operations of its matrix products and convolutions."""
    kernel_bytes: float
    """Read and written by its kernels: what they state, or each operand and result once; interpreted ones have none."""


def work_of(function: Callable[..., Any], *arguments: Any) -> Work:
    """Counts what a function does.

    Args:
        function: anything that jax can trace.
        arguments: its arguments, or their shapes.

    Example:
        >>> work_of(lambda a: a @ a, jax.ShapeDtypeStruct((10, 10), "float32"))
        Work(flops=2000.0, kernel_bytes=0.0)
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return Work(_total(_flops, jaxpr), _total(_kernel_bytes, jaxpr))


_Count = Callable[[Any], float | None]
"""Of an operation; None where that of what it holds counts."""


def _total(count: _Count, jaxpr: Jaxpr) -> float:
    """Adds up a count over the operations of a function and over what they hold, as often as it runs."""
    return sum((_of_equation(count, equation) for equation in jaxpr.eqns), 0.0)


def _of_equation(count: _Count, equation: Any) -> float:
    found = count(equation)
    if found is not None:
        return found
    name, parameters = equation.primitive.name, equation.params
    inner = [_total(count, jaxpr) for jaxpr in _inner(parameters)]
    if name == "cond":
        return max(inner)
    times = parameters["length"] if name == "scan" else 1
    if name == "pallas_call":
        times = math.prod(parameters["grid_mapping"].grid)
    return times * sum(inner, 0.0)


def _flops(equation: Any) -> float | None:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval, parameters["dimension_numbers"]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[numbers.rhs_spec[0]]
    stated = parameters.get("cost_estimate")
    return None if stated is None else float(stated.flops)


def _kernel_bytes(equation: Any) -> float | None:
    if equation.primitive.name != "pallas_call":
        return None
    if equation.params["interpret"]:
        return 0.0  # it is compiled as any other function
    stated = equation.params.get("cost_estimate")
    if stated is not None:
        return float(stated.bytes_accessed)
    arrays = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    return float(sum(array.size * array.dtype.itemsize for array in arrays))


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """What an operation holds: the body of a loop, the branches of a choice, a kernel."""
    for value in parameters.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one
