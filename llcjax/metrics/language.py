"""Behaviour and structure of attention-only language models over training (arXiv 2402.02364, section 4.1 and code)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

from llcjax import trees
from llcjax.checkpoints import CheckpointBank
from llcjax.keys import as_key
from llcjax.models.attention_only import AttentionOnlyConfig, attention_patterns
from llcjax.models.composition import k_composition
from llcjax.tasks.text import cross_entropy
from llcjax.types import ApplyFn, Params, PRNGKey

POSITIONS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
"""Tokens of a row, counted from 1 after its beginning, whose losses are kept one by one."""

_PROBES_AT_ONCE = 32

LONG_NAMES = {
    "test_loss": "loss on held-out rows",
    "test_loss_position": "held-out loss of each token",
    "test_loss_no_positions": "held-out loss without positional embeddings",
    "train_loss": "loss on training rows",
    "icl": "in-context learning score, loss at b less loss at a",
    "bigram_score": "cross-entropy of the model against the bigram table",
    "ngram_loss": "loss of the last token of frequent n-grams",
    "ngram_score": "loss at token n over loss of frequent n-grams",
    "previous_token": "attention to the previous token, layer:head",
    "prefix_matching": "attention to what followed the same token, layer:head",
    "k_composition": "K-composition of heads of both blocks",
    "weight_norm": "Euclidean norm of the parameters",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BigramTable:
    """Counts of pairs in training rows, as probabilities of the next token."""

    probability: Float[np.ndarray, "token token"]
    entropy: Float[np.ndarray, " token"]
    """Of each row of the table, in nats: the best bigram score where this token stands."""


def bigram_table(rows: Int[np.ndarray, "row token"], vocabulary: int) -> BigramTable:
    """Empirical probabilities of the next token; the token that begins each row is left out.

    Example:
        >>> round(float(bigram_table(np.array([[0, 1, 2, 1, 1, 1]]), 3).entropy[1]), 3)
        0.637
    """
    pairs = rows[:, 1:-1].astype(np.int64) * vocabulary + rows[:, 2:]
    counts = np.bincount(pairs.ravel(), minlength=vocabulary**2).reshape(vocabulary, vocabulary).astype(np.float32)
    often = counts.sum(1)
    probability = counts / np.maximum(often, 1)[:, None]
    entropy = -np.sum(probability * np.log(np.where(probability > 0, probability, 1)), 1)
    return BigramTable(probability=probability, entropy=entropy)


def frequent_ngrams(
    rows: Int[np.ndarray, "row token"], length: int, vocabulary: int, most: int = 1000
) -> Int[np.ndarray, "ngram token"]:
    """The most frequent token n-grams of training rows, their beginnings left out.

    They stand in for the words of GPT-2's vocabulary that the paper's tokenizer cuts into n tokens.

    Example:
        >>> frequent_ngrams(np.array([[0, 1, 2, 1, 2, 3]]), 2, 4, most=1).tolist()
        [[1, 2]]
    """
    windows = np.lib.stride_tricks.sliding_window_view(rows[:, 1:].astype(np.int64), length, axis=1)
    powers = vocabulary ** np.arange(length - 1, -1, -1, dtype=np.int64)
    codes, counts = np.unique((windows @ powers).ravel(), return_counts=True)
    chosen = codes[np.argsort(-counts, kind="stable")[:most]]
    return chosen[:, None] // powers % vocabulary


def language_metrics(
    apply: ApplyFn,
    config: AttentionOnlyConfig,
    bank: CheckpointBank,
    train: Int[np.ndarray, "row token"],
    held_out: Int[np.ndarray, "row token"],
    *,
    batch_size: int = 32,
    num_probes: int = 1024,
    ngram_rows: int = 4096,
    seed: int = 1_000_003,
) -> xr.Dataset:
    """Measures every checkpoint of a bank on the same rows and probes.

    Args:
        apply: the model.
        config: its sizes.
        bank: checkpoints.
        train: rows of training; all count for the bigram table, as many as held-out ones for `train_loss`.
        held_out: rows that training never saw; each starts with the token of a beginning.
        batch_size: rows at once.
        num_probes: random sequences for the scores of the heads, a multiple of 32.
        ngram_rows: rows of training in which n-grams are counted.
        seed: of these sequences.

    Returns:
        Losses in nats. `icl_a_b` is the loss of token b less that of token a (negative = learns in context; 50 and
        500 where the row is long enough, as in the paper's code). `previous_token_l_h` and `prefix_matching_l_h` are
        mean attentions of head h in layer l on random tokens. Attributes `bigram_floor`, the least that the bigram
        score can be at the places that are scored (one a row), and `chance` (ln vocabulary).

    Raises:
        ValueError: no rows, or a number of probes that is no multiple of 32.
    """
    if min(len(held_out), len(train)) == 0:
        raise ValueError(f"train has {len(train)} rows and held_out {len(held_out)}; give at least one of each.")
    if num_probes < 1 or num_probes % _PROBES_AT_ONCE:
        raise ValueError(f"num_probes={num_probes} must be a positive multiple of {_PROBES_AT_ONCE}.")
    batch_size = min(batch_size, len(held_out), len(train))
    test, seen = (_batches(rows, batch_size, len(held_out)) for rows in (held_out, train))
    table = bigram_table(train, config.vocabulary)
    lengths = [n for n in (2, 3, 4) if n < config.num_tokens]
    start = int(held_out[0, 0])
    ngrams = {n: _begun(frequent_ngrams(train[:ngram_rows], n, config.vocabulary), start) for n in lengths}
    probability = jnp.asarray(table.probability)
    keys = jax.random.split(as_key(seed), 2)
    previous = _random_tokens(keys[0], min(config.num_tokens, 64), config, num_probes, start)
    repeated, places = _with_repeat(keys[1], config, num_probes, start)

    @jax.jit
    def measure(params: Params, test: Array, seen: Array, probability: Array, ngrams: dict[int, Array]) -> dict:
        position, bigram = _mean_losses(apply, params, test, probability)
        without = {**params, "positions": jnp.zeros_like(params["positions"])}
        scores = {f"ngram_loss_{n}": _losses(apply, params, rows)[:, -1].mean() for n, rows in ngrams.items()}
        scores |= {f"ngram_score_{n}": position[n - 1] / scores[f"ngram_loss_{n}"] for n in ngrams}
        result = {
            "test_loss": position.mean(),
            "test_loss_position": position[jnp.array(_positions(config)) - 1],
            "test_loss_no_positions": _mean_losses(apply, without, test, probability)[0].mean(),
            "train_loss": _mean_losses(apply, params, seen, probability)[0].mean(),
            "bigram_score": bigram,
            "weight_norm": optax.tree.norm(params),
            **scores,
            **_head_scores(config, params, previous, repeated, places),
        }
        a, b = icl_positions(config)
        result[f"icl_{a}_{b}"] = position[b - 1] - position[a - 1]
        if config.num_layers > 1:
            result["k_composition"] = k_composition(config, params)
        return result

    columns = trees.stack([measure(bank.checkpoint(i), test, seen, probability, ngrams) for i in range(len(bank))])
    dims = {"test_loss_position": ("position",), "k_composition": ("earlier_head", "later_head")}
    return xr.Dataset(
        {name: (("checkpoint", *dims.get(name, ())), values, _attrs(name)) for name, values in columns.items()},
        coords={"checkpoint": bank.steps, "position": list(_positions(config))},
        attrs={"bigram_floor": _floor(test, table), "chance": float(np.log(config.vocabulary))},
    )


def icl_positions(config: AttentionOnlyConfig) -> tuple[int, int]:
    """The tokens whose losses the in-context learning score compares: 50 and 500, or a twentieth and a half of a row.

    Example:
        >>> icl_positions(AttentionOnlyConfig()), icl_positions(AttentionOnlyConfig(num_tokens=64))
        ((50, 500), (3, 32))
    """
    return (50, 500) if config.num_tokens > 500 else (max(config.num_tokens // 20, 1), max(config.num_tokens // 2, 1))


def _positions(config: AttentionOnlyConfig) -> tuple[int, ...]:
    return tuple(position for position in POSITIONS if position < config.num_tokens)


def _attrs(name: str) -> dict[str, str]:
    stem = re.sub(r"(_\d+)+$", "", name)
    heads = stem in ("previous_token", "prefix_matching")
    units = {"weight_norm": "parameters", "ngram_score": "ratio", "k_composition": "ratio"}
    return {"long_name": LONG_NAMES[stem], "units": "attention" if heads else units.get(stem, "nats")}


def _batches(rows: np.ndarray, batch_size: int, most: int) -> Int[Array, "batch row token"]:
    count = min(len(rows), most) // batch_size
    return jnp.asarray(rows[: count * batch_size].reshape(count, batch_size, -1))


def _begun(ngrams: np.ndarray, start: int) -> Int[Array, "ngram token"]:
    return jnp.asarray(np.concatenate([np.full((len(ngrams), 1), start), ngrams], 1), jnp.int32)


def _losses(apply: ApplyFn, params: Params, rows: Array) -> Float[Array, "row token"]:
    return cross_entropy(apply(params, rows)[:, :-1], rows[:, 1:])


def _mean_losses(
    apply: ApplyFn, params: Params, batches: Array, probability: Array
) -> tuple[Float[Array, " token"], Float[Array, ""]]:
    """Loss of each token, and the bigram score at one place of each row."""

    def one(rows: Array) -> tuple[Array, Array]:
        rows = rows.astype(jnp.int32)
        logits = apply(params, rows)
        place = _scored(rows)
        here = jnp.take_along_axis(logits, place[:, None, None], 1)[:, 0].astype(jnp.float32)
        wanted = probability[jnp.take_along_axis(rows, place[:, None], 1)[:, 0]]
        known = wanted.sum(-1) > 0  # tokens that never came in training have no row of the table
        score = -jnp.sum(wanted * jax.nn.log_softmax(here), -1)
        losses = cross_entropy(logits[:, :-1], rows[:, 1:]).mean(0)
        return losses, jnp.stack([jnp.sum(score * known), known.sum()])

    losses, scores = jax.lax.map(one, batches)
    total, count = scores.sum(0)
    return losses.mean(0), total / count


def _scored(rows: Array) -> Int[Array, " row"]:
    """One place a row, never its beginning, the same at every checkpoint."""
    return 1 + (jnp.arange(len(rows)) * 7919 + rows.sum(1)) % (rows.shape[1] - 1)


def _floor(batches: Array, table: BigramTable) -> float:
    """Mean entropy of the table where the bigram score is measured."""
    tokens = [rows[np.arange(len(rows)), _scored(rows)] for rows in np.asarray(batches, np.int32)]
    here, known = np.concatenate(tokens), table.probability.sum(1) > 0
    return float(table.entropy[here[known[here]]].mean())


def _random_tokens(key: PRNGKey, length: int, config: AttentionOnlyConfig, count: int, start: int) -> Array:
    """Random rows after a beginning, without the token of the beginning."""
    others = jnp.delete(jnp.arange(config.vocabulary), start)
    rows = others[jax.random.randint(key, (count, length), 0, len(others))]
    return rows.at[:, 0].set(start)


def _with_repeat(
    key: PRNGKey, config: AttentionOnlyConfig, count: int, start: int
) -> tuple[Int[Array, "row token"], Int[Array, "two row"]]:
    """Random rows in which one token comes once in each half, and nowhere else; and its places."""
    length = min(config.num_tokens, 128)
    half = length // 2
    row_key, token_key, first_key, second_key = jax.random.split(key, 4)
    rows = _random_tokens(row_key, length, config, count, start)
    special = _random_tokens(token_key, 2, config, count, start)[:, 1]
    # Elsewhere the special token gives way to its neighbor in the vocabulary (not the beginning).
    other = (special + 1) % config.vocabulary
    other = jnp.where(other == start, (other + 1) % config.vocabulary, other)
    rows = jnp.where(rows == special[:, None], other[:, None], rows)
    first = jax.random.randint(first_key, (count,), 1, half)
    second = jax.random.randint(second_key, (count,), half + 1, length)
    index = jnp.arange(count)
    return rows.at[index, first].set(special).at[index, second].set(special), jnp.stack([first, second])


def _head_scores(config: AttentionOnlyConfig, params: Params, previous: Array, rows: Array, places: Array) -> dict:
    """Previous-token and prefix-matching scores, a head each.

    Previous tokens are averaged over the second half of random rows of 64 tokens, where the paper's code draws lengths
    of 16 to 64 and looks from the last token only.
    """

    def in_parts(of_part: Callable[..., Array], *arrays: Array) -> Array:
        parts = jax.tree.map(lambda x: x.reshape(-1, _PROBES_AT_ONCE, *x.shape[1:]), arrays)
        return jax.lax.map(lambda part: of_part(*part), parts).mean(0)

    def to_previous(rows: Array) -> Array:
        patterns = attention_patterns(config, params, rows)
        back = jnp.diagonal(patterns, -1, -2, -1)
        return back[..., back.shape[-1] // 2 :].mean((1, 3))

    def to_follower(rows: Array, first: Array, second: Array) -> Array:
        patterns = attention_patterns(config, params, rows)
        index = jnp.arange(len(rows))
        return patterns[:, index, :, second, first + 1].mean(0)

    before, after = in_parts(to_previous, previous), in_parts(to_follower, rows, *places)
    named = {}
    for layer, head in np.ndindex(config.num_layers, config.num_heads):
        named[f"previous_token_{layer + 1}_{head + 1}"] = before[layer, head]
        named[f"prefix_matching_{layer + 1}_{head + 1}"] = after[layer, head]
    return named
