"""The key discipline: base -> purpose -> chain [-> checkpoint step] -> sampler step.

A result never depends on how runs were batched, cut into launches or resumed, because every key is derived
by `fold_in` from what a run *is*. Neither the checkpoint nor the setting enters by default
(`common="all"`): the same batches and the same noise along a curve make the differences between neighbouring
checkpoints lose almost all their Monte-Carlo noise.
"""

from __future__ import annotations

import numbers
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from llcjax.checks import shown
from llcjax.types import PRNGKey

Common = Literal["all", "batches", "none"]
Purpose = Literal["batch", "noise", "init", "baseline", "control"]

LARGEST_SEED = 2**32 - 1
"""Seeds beyond would give the keys of smaller ones: jax takes 32 bits of them."""

_PURPOSES: dict[str, int] = {"batch": 0, "noise": 1, "init": 2, "baseline": 3, "control": 4}


def as_key(key: PRNGKey | int) -> PRNGKey:
    """Turns a seed or a key into a typed threefry2x32 key.

    The generator is fixed because `rbg` keys under `vmap` give every chain noise that depends on its
    neighbours, and because threefry gives the same bits on every platform.

    Raises:
        ValueError: not an integer and not one jax key.
    """
    if isinstance(key, numbers.Integral) and not isinstance(key, bool):
        if not 0 <= key <= LARGEST_SEED:
            raise ValueError(f"key={key} must be a seed from 0 to {LARGEST_SEED:,}.")
        return jax.random.key(int(key), impl="threefry2x32")
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        if str(jax.random.key_impl(key)) != "threefry2x32":
            raise ValueError(
                f"key is of {jax.random.key_impl(key)}; make it with jax.random.key(0, impl='threefry2x32')."
            )
        return key
    if isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key, impl="threefry2x32")
    raise ValueError(f"key={shown(key)} is neither a seed nor one jax key; pass jax.random.key(0).")


def depends_on_checkpoint(common: Common, purpose: Purpose) -> bool:
    """Whether the keys of a purpose differ between checkpoints."""
    return common == "none" or (common == "batches" and purpose != "batch")


def chain_key(base: PRNGKey, purpose: Purpose, chain: int, checkpoint_step: int, common: Common = "all") -> PRNGKey:
    """The root key of one chain for one purpose; the checkpoint enters by its training step, not its index."""
    root = jax.random.fold_in(jax.random.fold_in(base, _PURPOSES[purpose]), chain)
    return jax.random.fold_in(root, checkpoint_step) if depends_on_checkpoint(common, purpose) else root


def chain_keys(
    base: PRNGKey, purpose: Purpose, chains: np.ndarray, checkpoint_steps: np.ndarray, common: Common
) -> Key[Array, " run"]:
    """`chain_key` of many runs at once; `chains` and `checkpoint_steps` run in parallel."""
    derive = jax.vmap(lambda chain, step: chain_key(base, purpose, chain, step, common))
    return derive(jnp.asarray(chains, jnp.uint32), jnp.asarray(checkpoint_steps, jnp.uint32))
