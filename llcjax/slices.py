"""The sampled entries of the components of a refined sweep: cut out of the parameters, and put back.

A chain carries the entries of its component alone, all else stays where the one frozen checkpoint has it. Components of
similar size share one table of indices, so that a head carries no padding of the size of the whole network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llcjax.types import Params

Mask = Params
"""Pytree of booleans, each broadcastable to its parameters."""

SIZE_RATIO = 4
"""Components whose sizes lie between the same two powers of this share a table, and so a compiled program."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Slices:
    """The entries of several components, as indices into the leaves that any of them touches, laid end to end."""

    index: Int[Array, "component entry"]
    """Of the entries of each component; one past the end fills up components that are smaller than the largest."""
    leaves: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """Numbers of the leaves that are touched; the others are never copied."""
    ragged: bool = dataclasses.field(metadata={"static": True})
    """Whether the components are of unequal size."""

    def take(self, params: Params, component: Int[Array, ""]) -> Float[Array, " entry"]:
        """The entries of one component; 0 where there is none."""
        return self._joined(params).at[self.index[component]].get(mode="fill", fill_value=0)

    def insert(self, params: Params, component: Int[Array, ""], values: Float[Array, " entry"]) -> Params:
        """`params` with the entries of one component replaced."""
        leaves, structure = jax.tree.flatten(params)
        joined = self._joined(params).at[self.index[component]].set(values, mode="drop")
        start = 0
        for position in self.leaves:
            leaf = leaves[position]
            leaves[position] = joined[start : start + leaf.size].reshape(leaf.shape)
            start += leaf.size
        return structure.unflatten(leaves)

    def valid(self, params: Params, component: Int[Array, ""]) -> Bool[Array, " entry"] | None:
        """Which entries a component really has; None where all components have all."""
        if not self.ragged:
            return None
        leaves = jax.tree.leaves(params)
        return self.index[component] < sum(leaves[position].size for position in self.leaves)

    def _joined(self, params: Params) -> Float[Array, " all"]:
        leaves = jax.tree.leaves(params)
        return jnp.concatenate([leaves[position].ravel() for position in self.leaves])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Components:
    """The components of a refined sweep."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Number of parameters of each."""
    tables: tuple[Slices, ...]
    """One for each class of similar sizes."""
    table: Int[np.ndarray, " component"]
    """Number of the table that holds each component."""
    row: Int[np.ndarray, " component"]
    """Its row there."""


def make_components(masks: Mapping[str, Mask], params: Params) -> Components:
    """The components with these masks.

    Args:
        masks: name -> mask of each component.
        params: one pytree of parameters or of their shapes.

    Raises:
        ValueError: no component, a mask that does not fit, or one that leaves nothing to sample.
    """
    if not masks:
        raise ValueError("components is empty; give at least one name with its mask.")
    full = {name: check_mask(mask, params, f"the mask of component {name!r}") for name, mask in masks.items()}
    sizes = np.array([sum(int(leaf.sum()) for leaf in mask) for mask in full.values()])
    table = np.unique(np.floor(np.log(sizes) / np.log(SIZE_RATIO)), return_inverse=True)[1]
    row = np.array([int((table[:i] == table[i]).sum()) for i in range(len(table))])
    tables = [
        _slices([mask for mask, own in zip(full.values(), table, strict=True) if own == number])
        for number in range(table.max() + 1)
    ]
    return Components(tuple(full), tuple(sizes.tolist()), tuple(tables), table, row)


def _slices(masks: Sequence[Sequence[np.ndarray]]) -> Slices:
    """The table of some components, from the leaves of their masks."""
    sizes = [leaf.size for leaf in masks[0]]
    touched = [i for i in range(len(sizes)) if any(mask[i].any() for mask in masks)]
    starts = np.cumsum([0, *(sizes[i] for i in touched)])
    rows = [
        np.concatenate([start + np.flatnonzero(mask[i]) for i, start in zip(touched, starts[:-1], strict=True)])
        for mask in masks
    ]
    counts = np.array([row.size for row in rows])
    index = np.full((len(rows), counts.max()), starts[-1], np.int32)
    for place, row in zip(index, rows, strict=True):
        place[: row.size] = row
    return Slices(jnp.asarray(index), tuple(touched), bool((counts < counts.max()).any()))


def check_mask(mask: Mask, params: Params, name: str = "mask") -> list[np.ndarray]:
    """The leaves of a mask as boolean arrays of the parameters' own shapes.

    Raises:
        ValueError: the mask does not fit the parameters, or leaves none to sample; `name` is named in the sentence.
    """
    try:
        full = jax.tree.map(lambda keep, leaf: np.broadcast_to(np.asarray(keep, bool), np.shape(leaf)), mask, params)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} does not fit the parameters ({error}); give one boolean, or array, a leaf."
        ) from error
    leaves = jax.tree.leaves(full)
    if not any(keep.any() for keep in leaves):
        raise ValueError(f"{name} leaves no parameter to sample; set at least one entry to True.")
    return leaves
