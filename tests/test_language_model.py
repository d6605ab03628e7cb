"""The attention-only language model and its loss, against independent computations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llcjax.models import AttentionOnlyConfig, attention_only
from llcjax.models.attention_only import attention_only_losses
from llcjax.posterior import check_loss_shape, evaluate
from llcjax.tasks.text import cross_entropy, loss_of_next_tokens, next_token_loss
from llcjax.trees import num_params

TINY = AttentionOnlyConfig(num_layers=2, num_heads=2, model_width=8, num_tokens=6, vocabulary=11)


@pytest.mark.parametrize(("layers", "count"), [(2, 3_355_016), (1, 3_091_336)])
def test_the_paper_has_so_many_parameters(layers, count):
    init, _ = attention_only(AttentionOnlyConfig(num_layers=layers))
    assert num_params(jax.eval_shape(init, jax.random.key(0))) == count


def in_float64(params, tokens):
    """Logits by loops over sequences, heads and tokens."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    logits = []
    for sequence in tokens:
        x = params["embed"][sequence]
        for _, block in sorted(params["blocks"].items()):
            normed, attention = norm(x, block["norm"]), block["attention"]
            placed = normed + params["positions"][: len(sequence)]
            q, k, v = (
                linear(placed, attention["query"]),
                linear(placed, attention["key"]),
                linear(normed, attention["value"]),
            )
            mixed, width = np.zeros_like(x), TINY.model_width // TINY.num_heads
            for head in range(TINY.num_heads):
                part = slice(head * width, (head + 1) * width)
                for token in range(len(sequence)):
                    scores = np.exp(k[: token + 1, part] @ q[token, part] / np.sqrt(width))
                    mixed[token, part] = scores / scores.sum() @ v[: token + 1, part]
            x = x + linear(mixed, attention["output"])
        logits.append(linear(norm(x, params["final_norm"]), params["unembed"]))
    return np.stack(logits)


def loss_in_float64(params, tokens):
    logits = in_float64(params, tokens)[:, :-1]
    return np.mean(np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0])


@pytest.fixture
def model():
    init, apply = attention_only(TINY)
    # Biases and norms start at 0 and 1, where mistakes would not show.
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32),
        init(jax.random.key(0)),
    )
    return params, apply, np.random.default_rng(0).integers(0, TINY.vocabulary, (3, TINY.num_tokens))


def test_logits_and_gradients_are_those_of_float64(model):
    params, apply, tokens = model
    np.testing.assert_allclose(apply(params, tokens), in_float64(params, tokens), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda p: evaluate(next_token_loss(apply), p, tokens).mean)(params)
    flat, along = (np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64) for tree in (params, gradient))
    step = 1e-5
    for seed in range(5):
        direction = np.random.default_rng(seed).normal(size=flat.shape)
        sides = [loss_in_float64(_rebuilt(params, flat + sign * step * direction), tokens) for sign in (1.0, -1.0)]
        assert float(along @ direction) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-3, abs=1e-5)


def _rebuilt(like, flat):
    """The vector as a pytree, in float64."""
    leaves, structure = jax.tree.flatten(like)
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return structure.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(np.split(flat, cuts), leaves, strict=True)]
    )


def test_no_token_sees_a_later_one(model):
    params, apply, tokens = model
    before = apply(params, tokens)
    changed = tokens.copy()
    changed[:, 4] = (changed[:, 4] + 1) % TINY.vocabulary
    after = apply(params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.abs(before[:, 4:] - after[:, 4:]).max(-1) > 1e-3).all()


def test_the_loss_leaves_out_the_last_position(model):
    params, apply, tokens = model
    assert check_loss_shape(next_token_loss(apply), params, tokens) == 2
    losses, weights = next_token_loss(apply)(params, tokens)
    np.testing.assert_array_equal(weights, np.ones((3, 1)) * [1, 1, 1, 1, 1, 0])
    wanted = optax.softmax_cross_entropy_with_integer_labels(apply(params, tokens)[:, :-1], tokens[:, 1:])
    np.testing.assert_allclose(losses[:, :-1], wanted, rtol=1e-5)
    assert float(evaluate(next_token_loss(apply), params, tokens).mean) == pytest.approx(float(wanted.mean()), rel=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_cross_entropy_and_its_gradient(dtype, tolerance):
    logits = 5 * jax.random.normal(jax.random.key(0), (4, 7, 13)).astype(dtype)
    labels = jax.random.randint(jax.random.key(1), (4, 7), 0, 13)

    def ours(logits):
        return jnp.sum(jnp.sin(jnp.arange(7)) * cross_entropy(logits, labels))

    def theirs(logits):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
        return jnp.sum(jnp.sin(jnp.arange(7)) * losses)

    assert float(ours(logits)) == pytest.approx(float(theirs(logits)), rel=1e-5)
    found, wanted = jax.grad(ours)(logits), jax.grad(theirs)(logits)
    assert found.dtype == logits.dtype
    np.testing.assert_allclose(found.astype(jnp.float32), wanted.astype(jnp.float32), atol=tolerance)


def test_activations_in_bfloat16_round_and_no_more(model):
    params, apply, tokens = model
    _, rounding = attention_only(TINY, "bfloat16")
    exact, rounded = (evaluate(next_token_loss(one), params, tokens).mean for one in (apply, rounding))
    assert rounded.dtype == jnp.float32
    assert 0 < abs(float(rounded / exact) - 1) < 0.02


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="model_width=10 is not a multiple of num_heads=4"):
        AttentionOnlyConfig(model_width=10, num_heads=4)


@pytest.mark.parametrize("kernels", ["xla", "pallas"])
def test_sequences_beyond_the_positions_are_refused(kernels):
    config = AttentionOnlyConfig(num_heads=2, model_width=64, num_tokens=128, vocabulary=50)
    init, apply = attention_only(config, kernels=kernels)
    with pytest.raises(ValueError, match="longer than the 128 positions"):
        apply(init(jax.random.key(0)), jnp.zeros((2, 256), "int32"))


def test_plain_jax_has_hessian_vector_products():
    init, _ = attention_only(TINY)
    params = init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, TINY.num_tokens), 0, TINY.vocabulary)
    loss_fn = loss_of_next_tokens(attention_only_losses(TINY, kernels="xla"))
    direction = jax.tree.map(jnp.ones_like, params)

    def gradient(size):
        return jax.grad(lambda p: evaluate(loss_fn, p, tokens).mean)(
            jax.tree.map(lambda leaf, along: leaf + size * along, params, direction)
        )

    product = jax.jvp(gradient, (0.0,), (1.0,))[1]
    near = jax.tree.map(lambda more, less: (more - less) / 2e-3, gradient(1e-3), gradient(-1e-3))
    for one, other in zip(jax.tree.leaves(product), jax.tree.leaves(near), strict=True):
        assert float(jnp.linalg.norm(one - other)) <= 2e-2 * float(jnp.linalg.norm(one)) + 1e-5
