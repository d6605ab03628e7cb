"""A language with known answers: a bigram chain in which a segment of unknown length comes again and again.

A row is a beginning, then a segment x_1 ... x_m of a stationary bigram chain, repeated to the end of the row; m is
uniform between two bounds, so that no fixed distance tells where to copy from. Who knows the bigram table alone pays
its entropy, on repeats as elsewhere; who copies (induction) pays nearly nothing on repeats.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llcjax.keys import as_key
from llcjax.types import PRNGKey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticLanguage:
    """The distribution of rows. Token 0 is the beginning, words are 1 to `num_words`."""

    num_words: int = 32
    """Different words."""
    num_tokens: int = 64
    """Tokens of a row, the beginning included."""
    shortest: int = 12
    """Least length of a segment."""
    longest: int = 24
    """Greatest length of a segment."""
    spread: float = 1.0
    """Standard deviation of the logits of the bigram table; 0 makes all words equally likely."""
    table_seed: int = 0
    """Seed of the bigram table."""

    def __post_init__(self) -> None:
        """Checks sizes.

        Raises:
            ValueError: a size out of range, or a row that has no room for a repeat.
        """
        if self.num_words < 2 or not self.spread >= 0:
            raise ValueError(f"num_words must be at least 2 and spread 0 or more, but got {self}.")
        if not 1 <= self.shortest <= self.longest < self.num_tokens - 2:
            raise ValueError(
                f"shortest={self.shortest}, longest={self.longest}: segments must have 1 to {self.num_tokens - 3} "
                f"tokens in this order, so that a row of {self.num_tokens} holds a repeat."
            )

    @property
    def vocabulary(self) -> int:
        """Words and the beginning."""
        return self.num_words + 1

    def table(self) -> Float[np.ndarray, "word word"]:
        """Probability of the next word (columns) after each word (rows)."""
        logits = self.spread * np.random.default_rng(self.table_seed).normal(size=(self.num_words, self.num_words))
        weights = np.exp(logits)
        return weights / weights.sum(1, keepdims=True)

    def stationary(self) -> Float[np.ndarray, " word"]:
        """The distribution that the table leaves as it is; segments start from it."""
        values, vectors = np.linalg.eig(self.table().T)
        leading = np.real(vectors[:, np.argmax(np.real(values))])
        return leading / leading.sum()

    def bigram_entropy(self) -> float:
        """Exact loss of who knows the current word and the table alone, in nats, inside a segment."""
        table = self.table()
        return float(-np.sum(self.stationary()[:, None] * table * np.log(table)))

    def sample(self, key: PRNGKey, batch_size: int) -> Int[Array, "batch token"]:
        """Draws rows of tokens."""
        return self.sample_parts(key, batch_size)[0]

    def sample_parts(self, key: PRNGKey, batch_size: int) -> tuple[Int[Array, "batch token"], Int[Array, " batch"]]:
        """Draws rows of tokens, and the length of the segment of each."""
        start_key, chain_key, length_key = jax.random.split(key, 3)
        log_table, log_start = jnp.log(jnp.asarray(self.table())), jnp.log(jnp.asarray(self.stationary()))
        first = jax.random.categorical(start_key, log_start, shape=(batch_size,))

        def follow(word: Array, key: PRNGKey) -> tuple[Array, Array]:
            return jax.random.categorical(key, log_table[word]), word

        _, words = jax.lax.scan(follow, first, jax.random.split(chain_key, self.longest))
        lengths = jax.random.randint(length_key, (batch_size,), self.shortest, self.longest + 1)
        place = jnp.arange(self.num_tokens - 1) % lengths[:, None]
        body = 1 + jnp.take_along_axis(words.T, place, 1)
        return jnp.concatenate([jnp.zeros((batch_size, 1), body.dtype), body], 1).astype(jnp.int32), lengths

    def on_repeat(self, lengths: Int[Array, " batch"]) -> Bool[Array, "batch token"]:
        """At which tokens a model predicts a word of a repeat, its first word left out (whose coming is a surprise)."""
        predicted = jnp.arange(self.num_tokens) + 1  # place in the row of what is predicted; words start at 1
        inside = (predicted - 1) % lengths[:, None] != 0
        return (predicted > lengths[:, None]) & inside & (predicted < self.num_tokens)

    def in_first(self, lengths: Int[Array, " batch"]) -> Bool[Array, "batch token"]:
        """At which tokens a model predicts a word of the first segment, its first word left out."""
        predicted = jnp.arange(self.num_tokens) + 1
        return (predicted > 1) & (predicted <= lengths[:, None])

    def optimal_losses(self, tokens: Int[Array, "batch token"]) -> Float[Array, "batch token"]:
        """Exact losses of the best predictor (Bayes), which weighs every length of the segment by the row so far.

        The last token of a row predicts nothing; its loss is 0.
        """
        words = tokens[:, 1:] - 1
        log_table, log_start = jnp.log(jnp.asarray(self.table())), jnp.log(jnp.asarray(self.stationary()))
        follows = log_table[words[:, :-1], words[:, 1:]]
        fresh = jnp.concatenate([log_start[words[:, 0]][:, None], follows], 1)

        def of_length(length: Array) -> Array:
            place = jnp.arange(words.shape[1])
            copied = words == jnp.take(words, jnp.maximum(place - length, 0), axis=1)
            return jnp.where(place < length, fresh, jnp.where(copied, 0.0, -jnp.inf))

        steps = jax.vmap(of_length)(jnp.arange(self.shortest, self.longest + 1))
        so_far = jax.nn.logsumexp(jnp.cumsum(steps, -1), axis=0) - jnp.log(steps.shape[0])
        losses = -jnp.diff(so_far, axis=1, prepend=0.0)
        return jnp.concatenate([losses, jnp.zeros((len(losses), 1))], 1)

    def induction_optimum(self, num_rows: int = 4096, seed: int = 0) -> tuple[float, float]:
        """Loss of the best predictor on repeats, and its standard error over `num_rows` rows."""
        tokens, lengths = self.sample_parts(as_key(seed), num_rows)
        repeats = self.on_repeat(lengths)
        total = np.asarray(jnp.sum(jnp.where(repeats, self.optimal_losses(tokens), 0.0), 1))
        count = np.asarray(repeats.sum(1))
        mean = total.sum() / count.sum()
        return float(mean), float(np.std(total - mean * count) / np.mean(count) / np.sqrt(num_rows))
