"""The one bridge between flax.nnx modules and plain functions of dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from llcjax.types import InitFn, Params, PRNGKey


def functional(
    make: Callable[[nnx.Rngs], nnx.Module], method: str = "__call__"
) -> tuple[InitFn, Callable[[Params, Any], jax.Array]]:
    """Turns a constructor of an nnx module into pure functions on nested dictionaries with string keys.

    Args:
        make: `make(rngs) -> module`; the module's `__call__(inputs)` is the forward pass.
        method: another method of the module for `apply` to call.

    Returns:
        `(init, apply)`: `init(key) -> params` may be vmapped over keys; `apply(params, inputs) -> outputs`.

    Example:
        >>> init, apply = functional(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
        >>> params = init(jax.random.key(0))
        >>> apply(params, jax.numpy.ones((4, 2))).shape
        (4, 3)
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: PRNGKey) -> Params:
        # Integer keys (of nnx.List) would come back from disk as strings, so they are strings from the start.
        state = nnx.state(make(nnx.Rngs(key)), nnx.Param)
        return _string_keys(nnx.to_pure_dict(state))

    def apply(params: Params, inputs: Any) -> jax.Array:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, _like(params, nnx.to_pure_dict(abstract)))
        return getattr(nnx.merge(graph, state), method)(inputs)

    return init, apply


def _string_keys(tree: Params) -> Params:
    """Makes every dictionary key a string."""
    return {str(key): _string_keys(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _like(params: Params, template: Params) -> Params:
    """Gives `params` the key types of `template`."""
    if not isinstance(template, dict):
        return params
    return {key: _like(params[str(key)], value) for key, value in template.items()}
