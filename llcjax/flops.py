"""Floating-point operations of the matrix products and convolutions of a function, counted before anything is compiled.

What a compiler counts depends on the device and on its release (on a GPU it counts nothing before it has compiled), and
none counts what a kernel does. Here a function is traced and its products are added up, those inside loops of known
length and inside kernels too; a product of a by b by c is 2abc operations. A loop that stops by a condition counts
once, so that a kernel with one states its own count. What is not a product is left out: it is small beside them, or the
device is bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def product_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of the products of a function.

    Args:
        function: anything that jax can trace.
        arguments: its arguments, or their shapes.

    Example:
        >>> product_flops(lambda a: a @ a, jax.ShapeDtypeStruct((10, 10), "float32"))
        2000.0
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns), 0.0)


def _of_equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval, parameters["dimension_numbers"]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[numbers.rhs_spec[0]]
    if parameters.get("cost_estimate") is not None:
        return float(parameters["cost_estimate"].flops)
    if name == "cond":
        return max(map(_of_jaxpr, _inner(parameters)))
    times = parameters["length"] if name == "scan" else 1
    if name == "pallas_call":
        times = math.prod(parameters["grid_mapping"].grid)
    return times * sum(map(_of_jaxpr, _inner(parameters)), 0.0)


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """What an operation holds: the body of a loop, the branches of a choice, a kernel."""
    for value in parameters.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one
