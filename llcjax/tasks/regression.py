"""In-context linear regression (arXiv 2402.02364, section 2.2), sampled on the device from a key.

A sequence has a hidden task t ~ N(0, I) and K pairs x ~ N(0, I), y = t.x + N(0, noise_variance).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llcjax.keys import as_key
from llcjax.types import ApplyFn, LossFn, Params, PRNGKey


class Sequences(NamedTuple):
    """A batch of regression sequences."""

    x: Float[Array, "batch position feature"]
    y: Float[Array, "batch position"]


class SequenceParts(NamedTuple):
    """What a batch of sequences is made of."""

    task: Float[Array, "batch feature"]
    x: Float[Array, "batch position feature"]
    noise: Float[Array, "batch position"]

    def sequences(self, input_gain: float = 1.0, task_gain: float = 1.0) -> Sequences:
        """The sequences, with inputs or hidden tasks scaled out of distribution (the noise keeps its size)."""
        clean = jnp.sum(self.x * self.task[:, None], -1)
        return Sequences(input_gain * self.x, input_gain * task_gain * clean + self.noise)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegressionTask:
    """The distribution of sequences; the defaults are the paper's."""

    dimension: int = 4
    """D, the width of x and of the hidden task."""
    num_pairs: int = 8
    """K, the number of (x, y) pairs in a sequence."""
    noise_variance: float = 0.125
    """Variance of the noise on y."""
    num_tasks: int | None = None
    """M, the number of tasks in a fixed set; None draws a fresh task for each sequence (M = infinity)."""
    task_seed: int = 0
    """Seed of the fixed set of tasks; unused where num_tasks is None."""

    def __post_init__(self) -> None:
        """Checks sizes."""
        if min(self.dimension, self.num_pairs, self.num_tasks or 1) < 1 or self.num_tasks == 0:
            raise ValueError(f"task sizes must be at least 1, but got {self}.")
        if not self.noise_variance >= 0:
            raise ValueError(f"noise_variance={self.noise_variance} is negative; give a variance >= 0.")

    @property
    def num_tokens(self) -> int:
        """Length of a token sequence, 2K."""
        return 2 * self.num_pairs

    @property
    def token_width(self) -> int:
        """Width of a token, D + 1."""
        return self.dimension + 1

    @property
    def chance(self) -> float:
        """Loss of the zero predictor, E[y^2] = D + noise_variance (for M = infinity)."""
        if self.num_tasks is None:
            return self.dimension + self.noise_variance
        return float(jnp.mean(jnp.sum(self.task_set() ** 2, -1))) + self.noise_variance

    def task_set(self) -> Float[Array, "task feature"]:
        """The fixed set of tasks of a finite M.

        Raises:
            ValueError: M is infinite.
        """
        if self.num_tasks is None:
            raise ValueError("num_tasks is None: infinitely many tasks have no fixed set; give num_tasks.")
        return jax.random.normal(as_key(self.task_seed), (self.num_tasks, self.dimension))

    def sample(self, key: PRNGKey, batch_size: int) -> Sequences:
        """Draws `batch_size` sequences; x is `(batch, K, D)`, y is `(batch, K)`."""
        return self.sample_parts(key, batch_size).sequences()

    def sample_parts(self, key: PRNGKey, batch_size: int) -> SequenceParts:
        """Draws the hidden tasks, the inputs and the noise of `batch_size` sequences."""
        task_key, x_key, noise_key = jax.random.split(key, 3)
        x = jax.random.normal(x_key, (batch_size, self.num_pairs, self.dimension))
        noise = jnp.sqrt(self.noise_variance) * jax.random.normal(noise_key, (batch_size, self.num_pairs))
        return SequenceParts(self._tasks(task_key, batch_size), x, noise)

    def _tasks(self, key: PRNGKey, batch_size: int) -> Float[Array, "batch feature"]:
        if self.num_tasks is None:
            return jax.random.normal(key, (batch_size, self.dimension))
        return self.task_set()[jax.random.randint(key, (batch_size,), 0, self.num_tasks)]


def tokens(sequences: Sequences) -> Float[Array, "batch token feature"]:
    """Interleaves the pairs as tokens: x_k -> (0, x_k), y_k -> (y_k, 0, ..., 0)."""
    x, y = sequences
    x_tokens = jnp.concatenate([jnp.zeros_like(y)[..., None], x], -1)
    y_tokens = jnp.concatenate([y[..., None], jnp.zeros_like(x)], -1)
    batch, pairs, width = x_tokens.shape
    return jnp.stack([x_tokens, y_tokens], 2).reshape(batch, 2 * pairs, width)


def predictions(apply: ApplyFn, params: Params, sequences: Sequences) -> Float[Array, "batch position"]:
    """The model's guess of each y_k: component 0 of its output at the token of x_k."""
    return apply(params, tokens(sequences))[:, ::2, 0]


def squared_error(apply: ApplyFn) -> LossFn:
    """Per-example, per-position squared error of a model, shape `(batch, position)`."""

    def loss(params: Params, sequences: Sequences) -> Float[Array, "batch position"]:
        return jnp.square(predictions(apply, params, sequences) - sequences.y)

    return loss


def ridge_predictions(
    sequences: Sequences, noise_variance: float, prior_variance: float = 1.0
) -> Float[Array, "batch position"]:
    """Bayes-optimal guesses for M = infinity: ridge regression on the pairs before each x_k.

    w_k = (X'X + noise_variance/prior_variance I)^-1 X'y on the first k - 1 pairs.
    """
    x, y = sequences
    gram = _sum_before(x[..., :, None] * x[..., None, :])
    moment = _sum_before(x * y[..., None])
    ridge = max(noise_variance, 1e-6) / prior_variance * jnp.eye(x.shape[-1])
    weights = jnp.linalg.solve(gram + ridge, moment[..., None])[..., 0]
    return jnp.sum(weights * x, -1)


def first_example_predictions(sequences: Sequences, task: RegressionTask) -> Float[Array, "batch position"]:
    """Guesses of a ridge regression that uses the first pair alone; 0 for the first guess itself."""
    first_x, first_y = sequences.x[:, 0], sequences.y[:, 0]
    precision = jnp.sum(jnp.square(first_x), -1) + max(task.noise_variance, 1e-6)
    guesses = jnp.einsum("bkd,bd->bk", sequences.x, first_x) * (first_y / precision)[:, None]
    return guesses.at[:, 0].set(0.0)


def discrete_predictions(sequences: Sequences, task: RegressionTask) -> Float[Array, "batch position"]:
    """Bayes-optimal guesses for a fixed set of M tasks: the mean task under the posterior of the pairs before each x_k.

    Raises:
        ValueError: M is infinite.
    """
    clean = jnp.einsum("bkd,md->bkm", sequences.x, task.task_set())
    misfit = jnp.square(sequences.y[..., None] - clean) / (2 * max(task.noise_variance, 1e-6))
    return jnp.sum(jax.nn.softmax(-_sum_before(misfit)) * clean, -1)


def _sum_before(values: Float[Array, "batch position ..."]) -> Float[Array, "batch position ..."]:
    """Sum over the positions before each position."""
    return jnp.cumsum(values, 1) - values
