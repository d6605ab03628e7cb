"""Stateless optax transforms that see the parameters and a key at every update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from llcjax.types import Params, PRNGKey

Move = Callable[[Params, Params, PRNGKey], Params]
"""`(updates, params, key) -> updates`."""


def stateless(move: Move) -> optax.GradientTransformationExtraArgs:
    """An optax transform without state from a function of updates, parameters and a key.

    The key comes with each update (`key=`) and is never kept in the state: `optax.add_noise` keeps it there, and
    `vmap(init)` then gives every chain the same noise.
    """

    def init(params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Params, state: Any, params: Params = None, **extra: Any) -> tuple[Params, Any]:
        return move(updates, params, extra["key"]), state

    return optax.GradientTransformationExtraArgs(init, update)
