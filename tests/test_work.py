"""Operations of products and bytes of kernels, as anyone would count them by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl

from llcjax.models import AttentionOnlyConfig
from llcjax.models.attention_only import attention_only, attention_only_losses
from llcjax.models.kernels import Products
from llcjax.models.kernels.long_attention import long_attention
from llcjax.posterior import evaluate
from llcjax.tasks.text import loss_of_next_tokens
from llcjax.work import work_of

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
    assert work_of(function, A) == (products * PRODUCT, 0)


@pytest.mark.parametrize("kernels", ["xla", "pallas"])
def test_the_language_model_counts_alike_with_and_without_kernels(kernels):
    config = AttentionOnlyConfig(num_heads=2, model_width=64, num_tokens=256, vocabulary=512)
    params = jax.eval_shape(attention_only(config)[0], jax.random.key(0))
    loss_fn = loss_of_next_tokens(attention_only_losses(config, kernels=kernels))
    tokens = jax.ShapeDtypeStruct((2, 256), "int32")
    found = work_of(jax.grad(lambda p, tokens: evaluate(loss_fn, p, tokens).mean), params, tokens)
    maps = 3 * 2 * 2 * 256 * 64 * (2 * 4 * 64 + 512)  # forward and two gradients; four maps of two blocks, and logits
    score = 2 * 32  # operations of a score in one product
    # Plain jax has two products of all scores forward and four backward. Kernels leave out later keys, up to their
    # tiles, and backward compute two products anew, one of them twice.
    num_scores = {"xla": 6 * 256**2, "pallas": (2 + 3 + 4) * 256 * (256 + 64) / 2}[kernels]
    assert found.flops == pytest.approx(maps + 2 * 2 * 2 * score * num_scores, rel=2e-4)


def test_a_kernel_moves_its_operands_and_results():
    def double(x_ref, out_ref):
        out_ref[...] = x_ref[...] + x_ref[...]

    def function(a, interpret):
        return pl.pallas_call(double, out_shape=A, interpret=interpret)(a) @ a

    assert work_of(lambda a: function(a, interpret=False), A) == (PRODUCT, 2 * 8 * 8 * 4)
    assert work_of(lambda a: function(a, interpret=True), A).kernel_bytes == 0  # the compiler sees what it is made of


def test_long_attention_states_what_it_moves():
    products = Products(lax.DotAlgorithmPreset.BF16_BF16_F32, interpret=False)
    heads = 2 * 256 * 4 * 32 * 2  # bytes of the values, of 2 sequences and 4 heads
    numbers, shifts = 2 * 256 * 4 * 4, 2 * 256 * 4 * 16 * 2  # a float32, or 16 summands, of each query
    biases = 2 * 256 // 64 * 4 * 32 * 4  # a sum of each tile of 64 queries
    qk, v = jax.ShapeDtypeStruct((2, 256, 8, 32), "bfloat16"), jax.ShapeDtypeStruct((2, 256, 4, 32), "bfloat16")
    forward = 5 * heads + 2 * numbers
    assert work_of(lambda qk, v: long_attention(products, qk, v), qk, v).kernel_bytes == forward
    both = work_of(lambda qk, v: jax.vjp(lambda *a: long_attention(products, *a), qk, v)[1](v), qk, v)
    assert both.kernel_bytes == forward + 6 * heads + numbers + shifts + biases + 6 * heads + shifts
