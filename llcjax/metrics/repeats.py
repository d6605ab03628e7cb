"""Losses of a model of the synthetic language on repeats, beside what can be known there."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from llcjax import trees
from llcjax.checkpoints import CheckpointBank
from llcjax.keys import as_key
from llcjax.tasks.synthetic_language import SyntheticLanguage
from llcjax.tasks.text import cross_entropy
from llcjax.types import ApplyFn, Params


def repeat_metrics(
    apply: ApplyFn, language: SyntheticLanguage, bank: CheckpointBank, *, num_rows: int = 512, seed: int = 2_000_003
) -> xr.Dataset:
    """Mean losses on repeats and in first segments, at every checkpoint of a bank.

    Args:
        apply: the model.
        language: the language of its rows.
        bank: checkpoints.
        num_rows: fresh rows.
        seed: of these rows.

    Returns:
        `repeat_loss` and `first_loss` in nats, without the first word of each segment, whose coming is a surprise. As
        attributes: `bigram_entropy` (the table alone), `unigram_loss` (see `unigram_loss`) and `induction_optimum`
        (Bayes), all on repeats.
    """
    tokens, lengths = language.sample_parts(as_key(seed), num_rows)
    parts = {"repeat_loss": language.on_repeat(lengths), "first_loss": language.in_first(lengths)}

    @jax.jit
    def measure(params: Params) -> dict[str, Array]:
        losses = cross_entropy(apply(params, tokens), jnp.roll(tokens, -1, axis=1))
        return {name: jnp.sum(losses * part) / part.sum() for name, part in parts.items()}

    columns = trees.stack([measure(bank.checkpoint(index)) for index in range(len(bank))])
    words = {"repeat_loss": "loss on repeats", "first_loss": "loss in first segments"}
    return xr.Dataset(
        {name: ("checkpoint", values, {"long_name": words[name], "units": "nats"}) for name, values in columns.items()},
        coords={"checkpoint": bank.steps},
        attrs={
            "bigram_entropy": language.bigram_entropy(),
            "unigram_loss": unigram_loss(language, tokens, lengths),
            "induction_optimum": language.induction_optimum()[0],
        },
    )


def unigram_loss(language: SyntheticLanguage, tokens: Int[Array, "row token"], lengths: Int[Array, " row"]) -> float:
    """Loss on repeats of who knows the table, the current word, and which words came how long ago.

    Not what followed what: that takes a head that reads what another head wrote. It is the least loss, in nats, of the
    predictors p(w) ~ table[current, w]^a (count of w + b)^c, where words count that came as long ago as a segment may
    be, and others little.
    """
    words, repeats = tokens[:, 1:] - 1, language.on_repeat(lengths)[:, 1:-1]
    table = jnp.log(jnp.asarray(language.table()))[words[:, :-1]]
    ones = jax.nn.one_hot(words, language.num_words)
    place = jnp.arange(words.shape[1])
    ago = place[1:, None] - place  # of each word, seen from the word to predict
    window = (ago >= language.shortest) & (ago <= language.longest)

    @jax.jit
    def loss(rest: float, a: float, b: float, c: float) -> Float[Array, ""]:
        weight = jnp.where(ago > 0, jnp.where(window, 1.0, rest), 0.0)
        logits = a * table + c * jnp.log(jnp.einsum("qk,rkw->rqw", weight, ones) + b)
        return jnp.sum(cross_entropy(logits, words[:, 1:]) * repeats) / repeats.sum()

    grid = itertools.product((0.0, 0.03, 0.1), (0.8, 1.0), (0.01, 0.03, 0.1), (0.8, 1.0, 1.2))
    return float(np.min([loss(*values) for values in grid]))
