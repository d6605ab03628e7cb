"""What is verified: a problem is one sweep over a bank of losses whose answers are known."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.keys import as_key
from llcjax.types import LossFn, Params, PRNGKey
from llcjax.verify.oracles import Expectation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """One loss, its anchor and what is known about it; one row of the table."""

    name: str
    params: Params
    """The anchor under "w", and numbers that the loss reads and no chain moves."""
    llc: float | None
    """lambda, the limit of large n_beta; None where the anchor is no minimum."""
    expectation: Callable[[], Expectation] | None = None
    """Exact expectation of the estimate, computed when it is needed; None where there is none."""
    tolerance: float | None = None
    """Relative distance from lambda that is allowed, where there is no exact expectation."""
    peers: str = ""
    """What another implementation gives, with the standard deviation over its chains."""
    note: str = ""
    """What else to know of it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A loss function, how it is sampled, and all anchors at which its answer is known."""

    group: str
    name: str
    """Unique: the seed is made of it."""
    loss_fn: LossFn
    config: SweepConfig
    answers: Sequence[Answer]
    data: Any = None
    mask: Any = True
    """Which entries of "w" move."""

    @property
    def bank(self) -> CheckpointBank:
        """The anchors as checkpoints, numbered from 0."""
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *(answer.params for answer in self.answers))
        return CheckpointBank(params=params, steps=np.arange(len(self.answers)))

    @property
    def full_mask(self) -> Params:
        """Only "w" is sampled."""
        params = self.answers[0].params
        return {name: jax.tree.map(lambda _, name=name: self.mask if name == "w" else False, leaf)
                for name, leaf in params.items()}  # fmt: skip

    @property
    def key(self) -> PRNGKey:
        """Seed 0 and the name, so that a new problem leaves the others as they are."""
        return jax.random.fold_in(as_key(0), zlib.crc32(f"{self.group} {self.name}".encode()))


def horner(
    coefficients: Float[Array, "coordinate power"], w: Float[Array, " coordinate"]
) -> Float[Array, " coordinate"]:
    """Polynomials of w, coefficients from the constant upwards; finite derivatives everywhere."""
    value = jnp.zeros_like(w)
    for power in reversed(range(coefficients.shape[-1])):
        value = value * w + coefficients[..., power]
    return value


def settings(sampler: str, **changes: Any) -> SweepConfig:
    """A configuration with independent noise at every anchor, on the full batch where nothing else is said."""
    defaults: dict[str, Any] = {"batch_size": None, "common": "none", "num_chains": 32, "draws_per_chunk": 500}
    return SweepConfig(sampler=sampler, runs_per_launch=1024, **{**defaults, **changes})
