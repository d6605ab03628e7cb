"""Metrics of the language model against hand-made models and independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llcjax.checkpoints import bank_of
from llcjax.metrics.language import bigram_table, language_metrics
from llcjax.models import AttentionOnlyConfig, attention_only
from llcjax.models.attention_only import attention_patterns
from llcjax.models.composition import k_composition
from llcjax.tasks.text import cross_entropy

CONFIG = AttentionOnlyConfig(num_layers=2, num_heads=2, model_width=16, num_tokens=20, vocabulary=17)


@pytest.fixture(scope="module")
def model():
    init, apply = attention_only(CONFIG)
    noise = np.random.default_rng(0)
    return apply, jax.tree.map(lambda leaf: leaf + 0.3 * noise.normal(size=leaf.shape), init(jax.random.key(0)))


def rows(seed, count=64):
    drawn = np.random.default_rng(seed).integers(1, CONFIG.vocabulary, (count, CONFIG.num_tokens))
    drawn[:, 0] = 0
    return drawn.astype(np.uint16)


def test_patterns_are_those_of_the_model(model):
    _, params = model
    tokens = jnp.asarray(rows(1, 3))
    patterns = attention_patterns(CONFIG, params, tokens)
    assert patterns.shape == (2, 3, 2, 20, 20)
    np.testing.assert_allclose(patterns.sum(-1), 1, rtol=1e-5)
    assert (np.asarray(patterns)[..., np.triu_indices(20, 1)[0], np.triu_indices(20, 1)[1]] == 0).all()
    first, normed = params["blocks"]["0"], params["embed"][tokens]
    normed = (normed - normed.mean(-1, keepdims=True)) / np.sqrt(normed.var(-1, keepdims=True) + 1e-5)
    normed = normed * first["norm"]["scale"] + first["norm"]["bias"]
    q, k = (
        (normed + params["positions"]) @ first["attention"][part]["kernel"] + first["attention"][part]["bias"]
        for part in ("query", "key")
    )
    wanted = np.exp(np.asarray(q)[1, 9, 8:] @ np.asarray(k)[1, :10, 8:].T / np.sqrt(8))
    np.testing.assert_allclose(patterns[0, 1, 1, 9, :10], wanted / wanted.sum(), rtol=1e-3)


def test_composition_is_the_one_of_its_formula(model):
    _, params = model
    first, second = (params["blocks"][name]["attention"] for name in "01")
    written = np.asarray(first["value"]["kernel"])[:, :8] @ np.asarray(first["output"]["kernel"])[:8]
    read = np.asarray(second["query"]["kernel"])[:, 8:] @ np.asarray(second["key"]["kernel"])[:, 8:].T
    wanted = np.linalg.norm(read @ written.T) / np.linalg.norm(read) / np.linalg.norm(written)
    assert float(k_composition(CONFIG, params)[0, 1]) == pytest.approx(wanted, rel=1e-4)


def test_losses_and_scores(model):
    apply, params = model
    train, held_out = rows(2, 32), rows(3, 32)
    found = language_metrics(apply, CONFIG, bank_of(params), train, held_out, batch_size=16, num_probes=32)
    tokens = jnp.asarray(held_out, jnp.int32)
    wanted = cross_entropy(apply(params, tokens)[:, :-1], tokens[:, 1:])
    assert float(found["test_loss"][0]) == pytest.approx(float(wanted.mean()), rel=1e-5)
    np.testing.assert_allclose(found["test_loss_position"][0, 4], wanted[:, 4].mean(), rtol=1e-5)
    gap = wanted[:, 9].mean() - wanted[:, 0].mean()
    assert float(found["icl_1_10"][0]) == pytest.approx(float(gap), abs=1e-5)
    assert found.attrs["bigram_floor"] < found["bigram_score"][0]
    assert found["k_composition"].shape == (1, 2, 2) and "prefix_matching_2_2" in found
    assert {name for name in found.data_vars if not np.isfinite(found[name]).all()} == set()
    with pytest.raises(ValueError, match="num_probes=33"):
        language_metrics(apply, CONFIG, bank_of(params), train, held_out, num_probes=33)
    without = cross_entropy(apply({**params, "positions": 0 * params["positions"]}, tokens)[:, :-1], tokens[:, 1:])
    assert float(found["test_loss_no_positions"][0]) == pytest.approx(float(without.mean()), rel=1e-5)


def test_a_head_that_looks_back_has_a_score_of_one():
    config = AttentionOnlyConfig(num_layers=1, num_heads=1, model_width=64, num_tokens=32, vocabulary=9)
    init, apply = attention_only(config)
    params = jax.tree.map(jnp.zeros_like, init(jax.random.key(0)))
    params["positions"] = 1.0 * jnp.eye(32, 64)
    attention = params["blocks"]["0"]["attention"]
    attention["query"]["kernel"] = 400 * jnp.eye(64)
    attention["key"]["kernel"] = jnp.eye(64, k=1)  # the key of token t is the query of token t + 1
    drawn = np.random.default_rng(0).integers(1, 9, (32, 32))
    drawn[:, 0] = 0
    found = language_metrics(apply, config, bank_of(params), drawn, drawn, num_probes=32)
    assert float(found["previous_token_1_1"][0]) == pytest.approx(1, abs=1e-4)
    assert float(found["prefix_matching_1_1"][0]) < 0.1
    assert "k_composition" not in found
    assert float(found["test_loss"][0]) == pytest.approx(np.log(9), rel=1e-5)


def test_the_floor_of_the_bigram_table():
    table = bigram_table(np.array([[0, 1, 2, 1, 3], [0, 1, 2, 1, 3]]), 4)
    np.testing.assert_allclose(table.probability[1], [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(table.entropy, [0, np.log(2), 0, 0], atol=1e-7)


def test_a_model_that_says_the_bigram_table_is_at_its_floor():
    """Of the same places, with tokens that training never saw left out of both."""
    train, held_out = rows(4, 96), rows(5, 64)
    train[train == 16] = 15  # no row of the table
    table = jnp.log(jnp.asarray(bigram_table(train, 17).probability) + 1e-30)
    apply = lambda params, tokens: table[tokens]  # noqa: E731
    params = attention_only(CONFIG)[0](jax.random.key(0))
    found = language_metrics(apply, CONFIG, bank_of(params), train, held_out, batch_size=16, num_probes=32)
    assert float(found["bigram_score"][0]) == pytest.approx(found.attrs["bigram_floor"], abs=1e-5)
