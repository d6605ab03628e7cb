"""Internals of the transformer, attention measures, structure of the weights, predictors with known sets of tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llcjax import trees
from llcjax.checkpoints import CheckpointBank
from llcjax.metrics.attention import attention_measures, attention_metrics, head_means
from llcjax.metrics.regression import regression_metrics
from llcjax.metrics.structure import structure_metrics, unembedding_paths
from llcjax.models.icl_transformer import TransformerConfig, icl_internals, icl_transformer
from llcjax.tasks.regression import (
    RegressionTask,
    Sequences,
    discrete_predictions,
    first_example_predictions,
    ridge_predictions,
    tokens,
)

TASK = RegressionTask(dimension=2, num_pairs=3)
MODEL = TransformerConfig(num_heads=2, model_width=8, mlp_width=8)


def bank(model=MODEL, count=3, task=TASK):
    init, apply = icl_transformer(model, task.num_tokens, task.token_width)
    return apply, CheckpointBank(
        params=trees.stack([init(jax.random.key(i)) for i in range(count)]), steps=np.arange(count)
    )


def test_internals_are_those_of_the_forward_pass():
    apply, checkpoints = bank()
    params = checkpoints.checkpoint(0)
    inputs = tokens(TASK.sample(jax.random.key(5), 4))
    attention, stream = icl_internals(MODEL, TASK.num_tokens, TASK.token_width)(params, inputs)
    assert attention.shape == (4, 2, 2, 6, 6) and stream.shape == (4, 3, 6, 8)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    assert np.all(np.triu(attention[0, 0, 0], 1) == 0)
    last = stream[:, -1] - stream[:, -1].mean(-1, keepdims=True)
    normed = last / np.sqrt((last**2).mean(-1, keepdims=True) + 1e-5)
    expected = normed @ params["unembed"]["kernel"] + params["unembed"]["bias"]  # gains are 1 and biases 0 at the start
    np.testing.assert_allclose(apply(params, inputs), expected, rtol=1e-4, atol=1e-5)


def test_attention_measures_of_known_heads():
    even = jnp.tril(jnp.ones((4, 4))) / jnp.arange(1, 5)[:, None]
    previous = jnp.eye(4, k=-1).at[0, 0].set(1.0)
    measures = attention_measures(jnp.stack([jnp.stack([even, previous])] * 3))
    np.testing.assert_allclose(measures["attention_entropy"][0, 1:], 1, rtol=1e-6)
    np.testing.assert_allclose(measures["attention_entropy"][1, 1:], 0, atol=1e-6)
    np.testing.assert_allclose(measures["attention_self"][0], [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(measures["attention_previous"][1, 1:], 1)
    np.testing.assert_allclose(measures["attention_x"][0], [1, 1 / 2, 2 / 3, 1 / 2], rtol=1e-6)
    np.testing.assert_allclose(measures["attention_distance"][1], [0, 0, 1 / 3, 2 / 4], rtol=1e-6)
    assert np.isnan(measures["attention_entropy"][0, 0]) and np.isnan(measures["attention_previous"][0, 0])
    np.testing.assert_allclose(measures["attention_variability"], 0, atol=1e-6)
    opposite = jnp.stack([jnp.array([[1.0, 0], [1, 0]]), jnp.array([[1.0, 0], [0, 1]])])
    assert attention_measures(opposite)["attention_variability"][1] == pytest.approx(0.5)


def test_attention_of_a_bank_has_a_place_for_each_head_and_token():
    _, checkpoints = bank()
    inputs = tokens(TASK.sample(jax.random.key(5), 16))
    inspect = icl_internals(MODEL, TASK.num_tokens, TASK.token_width)
    measured = attention_metrics(lambda params: inspect(params, inputs).attention, checkpoints)
    assert dict(measured.sizes) == {"checkpoint": 3, "block": 2, "head": 2, "token": 6}
    lines = head_means(measured)
    assert lines["attention_entropy_2_1"].dims == ("checkpoint",) and np.isfinite(lines.to_array()).all()


def test_structure_against_direct_formulas():
    _, checkpoints = bank()
    params = checkpoints.params
    params["final_norm"]["scale"][2] = np.linspace(0, 1, 8)
    params["final_norm"]["bias"][2] = 0.5
    measured = structure_metrics(checkpoints)
    embed, places = params["embed"]["kernel"][2].T, params["positions"][2].T
    singular = np.linalg.svd(embed)[1]
    np.testing.assert_allclose(measured["embedding_share"][2], singular / singular.sum(), rtol=1e-5)
    projected = places @ np.linalg.lstsq(places, embed, rcond=None)[0]
    cosine = np.sum(projected * embed, 0) / np.linalg.norm(projected, axis=0) / np.linalg.norm(embed, axis=0)
    np.testing.assert_allclose(measured["embedding_alignment"][2], cosine, rtol=1e-4)
    assert float(measured["gain_mean_final"][2]) == pytest.approx(0.5)
    assert float(measured["small_gain_final"][2]) == pytest.approx(1 / 8)
    row, bias = params["unembed"]["kernel"][2][:, 0], params["unembed"]["bias"][2][0]
    assert float(measured["effective_bias"][2]) == pytest.approx(0.5 * row.sum() + bias, abs=1e-6)
    assert float(measured["gain_mean_attention_1"][0]) == 1 and float(measured["bias_std_mlp_2"][1]) == 0
    np.testing.assert_allclose(unembedding_paths(checkpoints)["effective"][2], np.linspace(0, 1, 8) * row, rtol=1e-5)


def test_structure_of_one_rank_and_of_a_model_without_layer_norms():
    _, checkpoints = bank(TransformerConfig(num_heads=2, model_width=8, mlp_width=8, layer_norm=False))
    checkpoints.params["embed"]["kernel"][:] = 1.0
    measured = structure_metrics(checkpoints)
    np.testing.assert_allclose(measured["embedding_rank"], 1, rtol=1e-4)
    assert not [name for name in measured if str(name).startswith("gain")]
    np.testing.assert_allclose(measured["effective_unembedding_norm"], measured["unembedding_norm"], rtol=1e-6)


def test_predictors_with_a_first_pair_and_with_a_known_set_of_tasks():
    x, y = TASK.sample(jax.random.key(1), 5)
    guesses = first_example_predictions(Sequences(x, y), TASK)
    expected = ridge_predictions(Sequences(x[:, :2], y[:, :2]), TASK.noise_variance)
    np.testing.assert_allclose(guesses[:, :2], expected, rtol=1e-4, atol=1e-5)
    finite = RegressionTask(dimension=2, num_pairs=3, num_tasks=3)
    x, y = (np.asarray(part, np.float64) for part in finite.sample(jax.random.key(2), 4))
    tasks = np.asarray(finite.task_set(), np.float64)
    guesses = discrete_predictions(finite.sample(jax.random.key(2), 4), finite)
    for b in range(4):
        for k in range(3):
            weight = np.exp(-sum((y[b, j] - tasks @ x[b, j]) ** 2 for j in range(k)) / (2 * 0.125) + np.zeros(3))
            assert guesses[b, k] == pytest.approx(float(weight @ (tasks @ x[b, k]) / weight.sum()), abs=1e-4)


def test_behaviour_with_infinitely_many_and_with_few_tasks():
    apply, checkpoints = bank()
    infinite = regression_metrics(apply, checkpoints, TASK, num_sequences=64)
    assert infinite["zero_prediction_position"].sizes["position"] == 3 and "discrete_distance" not in infinite
    parts = TASK.sample_parts(jax.random.key(1_000_003, impl="threefry2x32"), 64)
    moved = parts.sequences(input_gain=5.0)
    loss = np.mean(np.square(apply(checkpoints.checkpoint(1), tokens(moved))[:, ::2, 0] - moved.y), 0)
    assert float(infinite["ood_icl_inputs_5"][1]) == pytest.approx((loss[-1] - loss[0]) / 5, rel=1e-3)
    few = RegressionTask(dimension=2, num_pairs=3, num_tasks=4)
    measured = regression_metrics(apply, checkpoints, few, num_sequences=64)
    assert {"discrete_distance", "mean_task_distance", "first_example_distance"} <= set(measured)
