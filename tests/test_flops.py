"""Operations of products, as anyone would count them by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from llcjax.flops import product_flops
from llcjax.models import AttentionOnlyConfig
from llcjax.models.attention_only import attention_only, attention_only_losses
from llcjax.posterior import evaluate
from llcjax.tasks.text import loss_of_next_tokens

A = jax.ShapeDtypeStruct((8, 8), "float32")
PRODUCT = 2 * 8**3


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda a: a @ a, 1),
        (jnp.sin, 0),
        (lambda a: lax.fori_loop(0, 5, lambda _, x: x @ a, a), 5),
        (lambda a: lax.scan(lambda x, _: (x @ a @ a, None), a, None, 3)[0], 6),
        (lambda a: lax.cond(a[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, a), 2),
        (lambda a: jax.vmap(lambda x: x @ a)(jnp.stack([a] * 4)), 4),
        (jax.jit(jax.value_and_grad(lambda a: jnp.sum(a @ a))), 3),
        (lambda a: lax.conv(a.reshape(1, 8, 8, 1), a.reshape(8, 8, 1, 1), (1, 1), "VALID"), 1),
    ],
)
def test_products_are_counted(function, products):
    assert product_flops(function, A) == products * PRODUCT


@pytest.mark.parametrize("kernels", ["xla", "pallas"])
def test_the_language_model_counts_alike_with_and_without_kernels(kernels):
    config = AttentionOnlyConfig(num_heads=2, model_width=64, num_tokens=256, vocabulary=512)
    params = jax.eval_shape(attention_only(config)[0], jax.random.key(0))
    loss_fn = loss_of_next_tokens(attention_only_losses(config, kernels=kernels))
    tokens = jax.ShapeDtypeStruct((2, 256), "int32")
    found = product_flops(jax.grad(lambda p, tokens: evaluate(loss_fn, p, tokens).mean), params, tokens)
    maps = 3 * 2 * 2 * 256 * 64 * (2 * 4 * 64 + 512)  # forward and two gradients; four maps of two blocks, and logits
    score = 2 * 32  # operations of a score in one product
    # Plain jax has two products of all scores forward and four backward. Kernels leave out later keys, up to their
    # tiles, and backward compute two products anew, one of them twice.
    num_scores = {"xla": 6 * 256**2, "pallas": (2 + 3 + 4) * 256 * (256 + 64) / 2}[kernels]
    assert found == pytest.approx(maps + 2 * 2 * 2 * score * num_scores, rel=2e-4)
