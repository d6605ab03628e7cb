"""Pytree tools that jax and optax do not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.types import Params, PRNGKey


@jax.named_scope("noise")
def normal_like(key: PRNGKey, tree: Params) -> Params:
    """Standard normal noise of the shapes of `tree`, drawn as one flat vector and cut up.

    One draw instead of one a leaf compiles several times faster and is the same on every platform.

    Args:
        key: one key.
        tree: float arrays.

    Returns:
        A float32 pytree of the same structure.
    """
    leaves, structure = jax.tree.flatten(tree)
    sizes = [leaf.size for leaf in leaves]
    flat = jax.random.normal(key, (sum(sizes),), jnp.float32)
    pieces = jnp.split(flat, np.cumsum(sizes)[:-1])
    return structure.unflatten([piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)])


def distance(a: Params, b: Params) -> Float[Array, ""]:
    """Euclidean distance between two pytrees of one structure."""
    squares = jax.tree.map(lambda x, y: jnp.sum(jnp.square(x - y)), a, b)
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def take(tree: Any, index: Any) -> Any:
    """Indexes the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def stack(trees: Sequence[Any]) -> Any:
    """Stacks pytrees on a new leading axis, on the host."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def concatenate(trees: Sequence[Any]) -> Any:
    """Concatenates pytrees along their leading axis, on the host."""
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *trees)


def leading_size(tree: Any, name: str) -> int:
    """Size of the leading axis that all leaves share.

    Raises:
        ValueError: no leaf, a leaf without axes, or leaves that disagree; `name` is named in the sentence.
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"{name} needs arrays that share one leading axis, but its leading axes are "
            f"{sorted(sizes) or 'missing'}; stack it on a common first axis."
        )
    return int(sizes.pop()[0])


def path_name(path: Any) -> str:
    """The place of a leaf in words, `blocks/0/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def num_params(tree: Params) -> int:
    """Number of scalars in a pytree."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def difference(a: Params, b: Params) -> str | None:
    """The first name and shape that only one of two pytrees has."""

    def shapes(tree: Params) -> set[tuple[str, tuple[int, ...]]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {(path_name(path), np.shape(leaf)) for path, leaf in leaves}

    different = sorted(shapes(a) ^ shapes(b))
    return f"{different[0][0]} of shape {different[0][1]}" if different else None
