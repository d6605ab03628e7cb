"""Step sizes that decay along a chain.

    step_size_t = step_size * (1 + t / time) ** -exponent         (Welling & Teh 2011, section 3)

With an exponent above 1/2 and at most 1 the sum of the steps diverges and the sum of their squares does not, so that a
chain reaches every place and the bias of its steps vanishes. Small exponents already trade speed for less bias.
"""

from __future__ import annotations

from typing import Any

DECAYING = ("sgld", "rmsprop_sgld", "adam_sgld")
"""Samplers whose step size may decay. The others have dynamics of their own in which one constant step is built in."""


def step_share(step: Any, exponent: Any, time: Any) -> Any:
    """Share of the first step size that is left at a step, (1 + step / time) ** -exponent.

    Args:
        step: steps since the start of the chain, a number or an array (of numpy or jax).
        exponent: 0 keeps the step size.
        time: steps over which the decay sets in.

    Example:
        >>> step_share(0, 0.5, 100), step_share(300, 0.5, 100)
        (1.0, 0.5)
    """
    return (1 + step / time) ** -exponent
