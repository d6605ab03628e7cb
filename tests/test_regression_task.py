import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llcjax import trees
from llcjax.models import TransformerConfig, icl_transformer
from llcjax.tasks.regression import RegressionTask, predictions, ridge_predictions, squared_error, tokens

TASK = RegressionTask()


@pytest.fixture(scope="module")
def model():
    init, apply = icl_transformer(TransformerConfig(), TASK.num_tokens, TASK.token_width)
    return init(jax.random.key(0)), apply


def test_parameter_count_and_initial_norm_are_the_papers(model):
    params, _ = model
    assert trees.num_params(params) == 51_717
    assert all(isinstance(key, str) for path, _ in jax.tree_util.tree_leaves_with_path(params) for key in
               (entry.key for entry in path))  # fmt: skip
    # Five published runs start at 24.91; the spread over seeds is about 0.1.
    assert float(optax.tree.norm(params)) == pytest.approx(24.91, abs=0.3)


def test_tokens_interleave_pairs():
    sequences = TASK.sample(jax.random.key(1), 3)
    interleaved = np.asarray(tokens(sequences))
    assert interleaved.shape == (3, 16, 5)
    np.testing.assert_array_equal(interleaved[:, ::2, 1:], sequences.x)
    np.testing.assert_array_equal(interleaved[:, ::2, 0], 0)
    np.testing.assert_array_equal(interleaved[:, 1::2, 0], sequences.y)
    np.testing.assert_array_equal(interleaved[:, 1::2, 1:], 0)


def test_predictions_see_only_the_past(model):
    params, apply = model
    sequences = TASK.sample(jax.random.key(2), 1)
    for k in range(TASK.num_pairs):
        grads = jax.grad(lambda s, k=k: predictions(apply, params, s)[0, k])(sequences)
        assert np.all(np.asarray(grads.x)[0, k + 1 :] == 0)
        assert np.all(np.asarray(grads.y)[0, k:] == 0)
        assert np.any(np.asarray(grads.x)[0, k] != 0)


def test_forward_equals_a_numpy_reference(model):
    params, apply = model
    inputs = np.asarray(tokens(TASK.sample(jax.random.key(3), 2)), np.float64)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(weights, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights["scale"] + weights["bias"]

    def block(weights, x):
        batch, length, width = x.shape
        qkv = (norm(weights["attention_norm"], x) @ weights["attention"]["qkv"]["kernel"]).reshape(batch, length, 4, 48)
        q, k, v = qkv[..., :16], qkv[..., 16:32], qkv[..., 32:]
        scores = np.einsum("bqhc,bkhc->bhqk", q, k) / 4
        scores = np.where(np.tril(np.ones((length, length))) > 0, scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhc->bqhc", attention, v).reshape(batch, length, width)
        x = x + mixed @ weights["attention"]["output"]["kernel"]
        hidden = norm(weights["mlp_norm"], x) @ weights["mlp_in"]["kernel"] + weights["mlp_in"]["bias"]
        return x + np.maximum(hidden, 0) @ weights["mlp_out"]["kernel"] + weights["mlp_out"]["bias"]

    x = inputs @ p["embed"]["kernel"] + p["positions"]
    for name in ("0", "1"):
        x = x + block(p["blocks"][name], x)  # the doubled residual stream
    expected = norm(p["final_norm"], x) @ p["unembed"]["kernel"] + p["unembed"]["bias"]
    np.testing.assert_allclose(apply(params, jnp.asarray(inputs, jnp.float32)), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "options", [{"layer_norm": False}, {"double_residual": False}, {"num_layers": 1, "num_heads": 2}]
)
def test_options_change_the_model(options):
    init, apply = icl_transformer(TransformerConfig(**options), TASK.num_tokens, TASK.token_width)
    params = init(jax.random.key(0))
    losses = squared_error(apply)(params, TASK.sample(jax.random.key(1), 4))
    assert losses.shape == (4, 8) and np.all(np.isfinite(losses))
    expected = {"layer_norm": 51_717 - 5 * 128, "double_residual": 51_717, "num_layers": 51_717 - 24_960}
    assert trees.num_params(params) == expected[next(iter(options))]


def test_ridge_is_the_published_bayes_optimum():
    sequences = TASK.sample(jax.random.key(4), 20_000)
    loss = np.mean(np.square(ridge_predictions(sequences, TASK.noise_variance) - sequences.y), 0)
    # Monte-Carlo error of the first position is 0.05.
    np.testing.assert_allclose(loss, [4.13, 3.15, 2.26, 1.48, 0.90, 0.57, 0.41, 0.32], rtol=0.05)
    assert loss.mean() == pytest.approx(1.653, abs=0.04)


def test_ridge_equals_a_direct_solve():
    x, y = (np.asarray(a, np.float64) for a in TASK.sample(jax.random.key(5), 2))
    ridge = np.asarray(ridge_predictions(TASK.sample(jax.random.key(5), 2), 0.125))
    for b in range(2):
        for k in range(8):
            w = np.linalg.solve(x[b, :k].T @ x[b, :k] + 0.125 * np.eye(4), x[b, :k].T @ y[b, :k])
            assert ridge[b, k] == pytest.approx(x[b, k] @ w, abs=1e-4)


def test_finite_tasks_repeat_and_chance_is_the_zero_predictors_loss():
    finite = RegressionTask(num_tasks=3, noise_variance=0.0)
    x, y = (np.asarray(a, np.float64) for a in finite.sample(jax.random.key(6), 64))
    found = np.stack([np.linalg.lstsq(x[b], y[b], rcond=None)[0] for b in range(64)])
    assert len(np.unique(found.round(3), axis=0)) == 3
    for task, size in ((TASK, 40_000), (RegressionTask(num_tasks=5), 40_000)):
        y = np.asarray(task.sample(jax.random.key(7), size).y)
        assert np.mean(y**2) == pytest.approx(task.chance, rel=0.03)


def test_out_of_distribution_scaling():
    parts = TASK.sample_parts(jax.random.key(8), 16)
    clean = np.einsum("bkd,bd->bk", parts.x, parts.task)
    np.testing.assert_allclose(parts.sequences(input_gain=3).x, 3 * parts.x, rtol=1e-6)
    np.testing.assert_allclose(parts.sequences(task_gain=5).y, 5 * clean + parts.noise, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(parts.sequences(task_gain=5).x, parts.x)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: RegressionTask(dimension=0), "at least 1"),
        (lambda: RegressionTask(noise_variance=-1.0), "noise_variance=-1.0"),
        (lambda: TransformerConfig(model_width=30), "model_width=30"),
        (lambda: TransformerConfig(num_layers=0), "at least 1"),
    ],
)
def test_bad_sizes_get_a_sentence(make, word):
    with pytest.raises(ValueError, match=word):
        make()
