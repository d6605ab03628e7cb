"""Parts of a network: which parameters a refined LLC samples, and how their entries are cut out and put back.

The weight-refined LLC of a part C (Wang et al. 2024, arXiv 2410.02984, section 3) samples the entries v of C and keeps
the others at the checkpoint, u = u*:

    p(v) ~ exp(-n_beta * L(u*, v) - localization/2 * |v - v*|^2),    LLC_C = n_beta * (E[L(u*, v)] - L(w*))

A part is a mask: a pytree of booleans, each broadcastable to its parameters. `component_masks` makes masks from names.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llcjax.trees import path_name
from llcjax.types import Params

Mask = Params
"""Pytree of booleans, each broadcastable to its parameters."""


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


def make_slices(masks: Mapping[str, Mask], params: Params) -> tuple[Slices, np.ndarray]:
    """Index arrays of several components.

    Args:
        masks: name -> mask of each component.
        params: one pytree of parameters or of their shapes.

    Returns:
        The slices, and the number of entries of each component.

    Raises:
        ValueError: no component, a mask that does not fit, or one that leaves nothing to sample.
    """
    if not masks:
        raise ValueError("components is empty; give at least one name with its mask.")
    full = {name: check_mask(mask, params, f"the mask of component {name!r}") for name, mask in masks.items()}
    kept = {name: [np.flatnonzero(leaf) if leaf.any() else _NOTHING for leaf in mask] for name, mask in full.items()}
    sizes = [leaf.size for leaf in next(iter(full.values()))]
    touched = [i for i in range(len(sizes)) if any(found[i].size for found in kept.values())]
    starts = dict(zip(touched, np.cumsum([0, *(sizes[i] for i in touched)]), strict=False))
    total = sum(sizes[i] for i in touched)
    rows = [np.concatenate([starts[i] + found[i] for i in touched]) for found in kept.values()]
    counts = np.array([row.size for row in rows])
    index = np.full((len(rows), counts.max()), total, np.int32)
    for place, row in zip(index, rows, strict=True):
        place[: row.size] = row
    return Slices(jnp.asarray(index), tuple(touched), bool((counts < counts.max()).any())), counts


_NOTHING = np.zeros(0, np.int64)


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


def component_masks(
    params: Params, names: Sequence[str], *, num_heads: int | None = None, num_key_value_heads: int | None = None
) -> dict[str, Mask]:
    """Masks of named parts of a model.

    Names are path patterns of the parameters (`blocks/0/attention/*`, with `*` and `?`), or, for models whose blocks
    are called `blocks/0` with `attention/{query,key,value,output}/{kernel,bias}` below them (those of llcjax), also

    - `block_0`, `block_0/attention`, `block_0/mlp`, or `l0`, `l0 attn`, `l0 mlp`;
    - `block_0/attention/head_3` or `l0h3`: the rows and columns of head 3 in query, key, value and output, with their
      biases; where heads share keys and values, the shared ones are those of its group;
    - `l0g1`: the second group of heads that share keys and values, with all their queries and outputs;
    - `embed`, `unembed` and `full`.

    Args:
        params: one pytree of parameters or of their shapes.
        names: of the parts.
        num_heads: attention heads of a block, for names of heads.
        num_key_value_heads: heads of keys and values where queries share them; None: as many as heads.

    Returns:
        Name -> mask.

    Raises:
        ValueError: a name that selects nothing, a head that is out of range, or heads without `num_heads`.

    Example:
        >>> params = {"blocks": {"0": {"mlp": {"up": np.ones((2, 4))}}}, "embed": np.ones((3, 2))}
        >>> component_masks(params, ["l0 mlp"])
        {'l0 mlp': {'blocks': {'0': {'mlp': {'up': True}}}, 'embed': False}}
    """
    groups = num_key_value_heads or num_heads
    return {name: _mask(params, name, num_heads, groups) for name in names}


def head_names(num_layers: int, num_heads: int) -> list[str]:
    """Names of all heads, `block_0/attention/head_0` first."""
    return [f"block_{layer}/attention/head_{head}" for layer in range(num_layers) for head in range(num_heads)]


_HEAD = re.compile(r"(?:block_(\d+)/attention/head_(\d+)|l(\d+)\s*h(\d+))")
_GROUP = re.compile(r"l(\d+)\s*g(\d+)")
_BLOCK = re.compile(r"(?:block_(\d+)(?:/(attention|mlp))?|l(\d+)(?:\s+(attn|mlp))?)")


def _mask(params: Params, name: str, num_heads: int | None, num_groups: int | None) -> Mask:
    text = name.strip()
    if head := _HEAD.fullmatch(text.lower()):
        layer, index = (int(part) for part in head.groups() if part is not None)
        heads, shared = _checked_heads(name, index, num_heads, num_groups)
        return _heads(params, name, layer, [index], [index * shared // heads], heads, shared)
    if group := _GROUP.fullmatch(text.lower()):
        layer, index = int(group[1]), int(group[2])
        heads, shared = _checked_heads(name, index, num_heads, num_groups, of_groups=True)
        members = [head for head in range(heads) if head * shared // heads == index]
        return _heads(params, name, layer, members, [index], heads, shared)
    if block := _BLOCK.fullmatch(text.lower()):
        layer = block[1] or block[3]
        part = {"attn": "attention"}.get(block[4] or "", block[2] or block[4])
        pattern = f"blocks/{layer}/*" if part is None else f"blocks/{layer}/{part}/*"
    else:
        pattern = "*" if text == "full" else text
    # A name without a pattern takes all that lies below it.
    return _where(params, name, lambda path: fnmatch.fnmatchcase(path, pattern) or path.startswith(f"{pattern}/"))


def _where(params: Params, name: str, wanted: Callable[[str], bool]) -> Mask:
    mask = jax.tree_util.tree_map_with_path(lambda path, _: wanted(path_name(path)), params)
    if not any(jax.tree.leaves(mask)):
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(f"the component {name!r} selects nothing; the parameters are called: {', '.join(paths)}.")
    return mask


def _checked_heads(
    name: str, index: int, num_heads: int | None, num_groups: int | None, of_groups: bool = False
) -> tuple[int, int]:
    if num_heads is None or num_groups is None:
        raise ValueError(f"the component {name!r} is a head; give num_heads, how many heads a block has.")
    most = num_groups if of_groups else num_heads
    if index >= most:
        raise ValueError(f"the component {name!r} is out of range: choose from 0 to {most - 1}.")
    return num_heads, num_groups


def _heads(
    params: Params, name: str, layer: int, heads: list[int], groups: list[int], num_heads: int, num_groups: int
) -> Mask:
    """Rows and columns of some heads; query and output are cut by heads, key and value by groups."""
    below = f"blocks/{layer}/attention/"
    cuts = {"query": (heads, num_heads), "key": (groups, num_groups), "value": (groups, num_groups)}

    def one(path: tuple, leaf: Array) -> bool | np.ndarray:
        place = path_name(path)
        if not place.startswith(below):
            return False
        part, _, kind = place.removeprefix(below).partition("/")
        if part in cuts:  # the last axis holds the heads, of a kernel (width, heads) and of a bias (heads,)
            return _stripes(leaf.shape[-1], *cuts[part])
        if (part, kind) == ("output", "kernel"):
            return _stripes(leaf.shape[0], heads, num_heads)[:, None]
        return False

    mask = jax.tree_util.tree_map_with_path(one, params)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(mask)):
        raise ValueError(f"the component {name!r} selects nothing: there are no parameters below {below}.")
    return mask


def _stripes(size: int, chosen: list[int], count: int) -> Bool[np.ndarray, " size"]:
    if size % count:
        raise ValueError(f"an axis of {size} cannot be cut into {count} heads; check num_heads.")
    return np.isin(np.arange(size) // (size // count), chosen)
