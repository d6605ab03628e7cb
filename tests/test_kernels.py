"""Kernels compute what their twins in plain jax compute, values and gradients, interpreted; and lower for a GPU."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.lax import DotAlgorithmPreset

from llcjax import _compat, trees
from llcjax.models import TransformerConfig, icl_transformer
from llcjax.models.attention import attention_products
from llcjax.models.attention_only import AttentionOnlyConfig, _Attention, attention_only, attention_only_losses
from llcjax.models.kernels import Products, kernel_products
from llcjax.models.kernels.block_tail import TailSpec, TailWeights, block_tail
from llcjax.models.kernels.cross_entropy import linear_cross_entropy
from llcjax.models.kernels.long_attention import Launch, Launches, fits, long_attention
from llcjax.models.kernels.normed_linear import LinearSpec, normed_linear
from llcjax.models.kernels.short_attention import AttentionSpec, short_attention
from llcjax.posterior import evaluate
from llcjax.tasks.text import loss_of_next_tokens, next_token_loss

SIZES = {
    "the paper's": (TransformerConfig(num_layers=1), 16, 8),
    "a tile that is not full": (TransformerConfig(num_layers=1, num_heads=2, model_width=32, mlp_width=32), 16, 5),
    "one head, other widths": (TransformerConfig(num_layers=1, num_heads=1, model_width=32, mlp_width=16), 8, 3),
    "no layer norm, one residual": (
        TransformerConfig(num_layers=1, num_heads=2, model_width=32, layer_norm=False, double_residual=False), 4, 4,
    ),
}  # fmt: skip


def lowered_for_a_gpu(function, *arguments):
    """As on a GPU; jax 0.11 asks which one, to lower a kernel."""
    gpu = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 11):
        from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

        gpu = use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H200", None, "gpu")))
    with gpu:
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("name", SIZES)
def test_values_and_gradients_are_those_of_plain_jax(name):
    config, tokens, batch = SIZES[name]
    inputs, wanted = jax.random.normal(jax.random.key(1), (2, batch, tokens, 5))
    found = {}
    for kernels in ("xla", "pallas"):
        init, apply = icl_transformer(config, tokens, 5, kernels)
        params = init(jax.random.key(0))

        def loss(params, inputs, apply=apply):
            return jnp.sum((apply(params, inputs) - wanted) ** 2)

        assert ("pallas_call" in str(jax.make_jaxpr(apply)(params, inputs))) == (kernels == "pallas")
        found[kernels] = jax.jit(lambda *args, apply=apply, loss=loss: (apply(*args), jax.grad(loss, (0, 1))(*args)))(
            params, inputs
        )
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5 * float(jnp.abs(one).max()))


def test_chains_of_a_batch_are_those_of_one_chain():
    config = TransformerConfig(num_layers=1, num_heads=1, model_width=16, mlp_width=16)
    init, apply = icl_transformer(config, 16, 5, "pallas")
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), 3))
    inputs = jax.random.normal(jax.random.key(1), (8, 16, 5))
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(apply(params, inputs) ** 2)))
    together = jax.jit(jax.vmap(gradient))(params)
    for index in range(3):
        alone = gradient(trees.take(params, index))
        for one, all_of_them in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(one, all_of_them[index], rtol=1e-5, atol=1e-5 * float(jnp.abs(one).max()))


@pytest.mark.parametrize(
    ("tokens", "config"),
    [
        (18, TransformerConfig(num_layers=1)),
        (16, TransformerConfig(num_heads=8)),
        (128, TransformerConfig()),
        (16, TransformerConfig(mlp_width=48)),
    ],
)
def test_other_sizes_fall_back_to_plain_jax(tokens, config):
    init, apply = icl_transformer(config, tokens, 5, "pallas")
    assert "pallas_call" not in str(jax.make_jaxpr(apply)(init(jax.random.key(0)), jnp.ones((2, tokens, 5))))


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [
        ("F32_F32_F32", "float32"),
        ("TF32_TF32_F32", "float32"),
        ("F16_F16_F32", "float16"),
        ("BF16_BF16_F32", "bfloat16"),
        ("BF16_BF16_F32", "float32"),
    ],
)
def test_both_directions_of_attention_lower_for_a_gpu(algorithm, dtype):
    spec = AttentionSpec(num_tokens=16, num_heads=4, products=Products(DotAlgorithmPreset[algorithm], interpret=False))

    def both(qkv):
        mixed, back = jax.vjp(lambda qkv: short_attention(spec, qkv), qkv)
        return back(mixed)

    shape = jax.ShapeDtypeStruct((3, 8, 16, 192), dtype)
    text = lowered_for_a_gpu(jax.vmap(both), shape).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_surrounds_attention_lowers_for_a_gpu(dtype):
    products = Products(DotAlgorithmPreset.TF32_TF32_F32, interpret=False)
    square, bias = jnp.ones((64, 64)), jnp.ones(64)

    def both(x):
        def forward(x):
            linear = LinearSpec(products=products, layer_norm=True)
            qkv, through = normed_linear(linear, x, jnp.ones((64, 192)), jnp.ones(192))
            tail = TailSpec(products=products, layer_norm=True, double_residual=True)
            return block_tail(tail, through, qkv[:, :64], TailWeights(square, square, bias, square, bias))

        y, back = jax.vjp(forward, x)
        return back(y)

    shape = jax.ShapeDtypeStruct((3, 128, 64), dtype)
    text = lowered_for_a_gpu(jax.vmap(both), shape).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 4


@pytest.mark.parametrize("kernels", ["xla", "pallas"])
@pytest.mark.parametrize(("activations", "rounding"), [("float16", 0.0025), ("bfloat16", 0.02)])
def test_activations_in_16_bits_round_and_no_more(kernels, activations, rounding):
    inputs, wanted = jax.random.normal(jax.random.key(1), (2, 8, 16, 5))
    found = []
    for stored in ("float32", activations):
        init, apply = icl_transformer(TransformerConfig(num_layers=1), 16, 5, kernels, stored)
        params = init(jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert apply(params, inputs).dtype == jnp.float32
        gradient = jax.jit(jax.value_and_grad(lambda p, apply=apply: jnp.mean((apply(p, inputs) - wanted) ** 2)))
        found.append(gradient(params))
    (exact, exact_gradient), (rounded, rounded_gradient) = found
    assert 0 < abs(rounded / exact - 1) < rounding
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded_gradient)} == {jnp.dtype("float32")}
    assert 0 < trees.distance(rounded_gradient, exact_gradient) < rounding * optax.tree.norm(exact_gradient)


def gradients_of_mean(kernels, factor):
    """Of `factor` times the mean output on 128 tokens, with activations in float32 and in float16."""
    inputs = jax.random.normal(jax.random.key(1), (8, 16, 5))
    for activations in ("float32", "float16"):
        init, apply = icl_transformer(TransformerConfig(num_layers=1), 16, 5, kernels, activations)
        params = init(jax.random.key(0))
        yield jax.jit(jax.grad(lambda p, apply=apply: factor * jnp.mean(apply(p, inputs))))(params)


@pytest.mark.parametrize("kernels", ["xla", "pallas"])
def test_small_gradients_survive_float16(kernels):
    """Of a mean over many outputs, near a minimum: without a scale on the way back many would be 0."""
    exact, rounded = gradients_of_mean(kernels, 1e-3)
    assert 1e-3 / (128 * 5) < 6e-6  # where float16 has two bits left
    assert trees.distance(rounded, exact) < 0.005 * optax.tree.norm(exact)


@pytest.mark.parametrize("kernels", ["xla", "pallas"])
def test_large_gradients_survive_float16(kernels):
    """Of parameters, as sums over the tokens: beyond the range of float16."""
    exact, rounded = gradients_of_mean(kernels, 6e4)
    assert sum(float(jnp.abs(leaf).max()) * 128 > 65_504 for leaf in jax.tree.leaves(exact)) > 6
    assert trees.distance(rounded, exact) < 0.005 * optax.tree.norm(exact)


def test_exact_products_leave_the_kernels_out(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with jax.default_matmul_precision("highest"):
        assert kernel_products("auto") is None
        assert kernel_products("pallas") == Products(DotAlgorithmPreset.F32_F32_F32, interpret=False)
    with jax.default_matmul_precision("tensorfloat32"):
        assert kernel_products("auto") == Products(DotAlgorithmPreset.TF32_TF32_F32, interpret=False)
        assert kernel_products("auto", "float16") == Products(DotAlgorithmPreset.F16_F16_F32, interpret=False)


def test_an_unknown_switch_is_refused():
    with pytest.raises(ValueError, match="kernels='cuda' is unknown; choose auto, xla or pallas"):
        kernel_products("cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "vocabulary"), [(256, 512), (100, 700), (7, 33)])
def test_cross_entropy_after_a_linear_map_is_that_of_plain_jax(rows, vocabulary, dtype):
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (rows, 16)).astype(dtype)
    weight = jax.random.normal(keys[1], (16, vocabulary)).astype(dtype)
    bias, wanted = jax.random.normal(keys[2], (vocabulary,)), jax.random.normal(keys[3], (rows,))
    labels = jax.random.randint(keys[4], (rows,), 0, vocabulary)

    def plain(x, weight, bias):
        logits = jnp.dot(x, weight).astype(jnp.float32) + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def ours(x, weight, bias):
        return linear_cross_entropy(Products(None, interpret=True), x, weight, bias, labels)

    results = [
        jax.jit(lambda *args, losses=losses: (losses(*args), *jax.vjp(losses, *args)[1](wanted)))(x, weight, bias)
        for losses in (plain, ours)
    ]
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert float(jnp.linalg.norm((one - other).astype(jnp.float32))) <= tolerance * float(
            jnp.linalg.norm(one.astype(jnp.float32))
        )


def test_the_language_model_gives_the_same_losses_by_kernels():
    config = AttentionOnlyConfig(num_heads=2, model_width=16, num_tokens=8, vocabulary=50)
    init, apply = attention_only(config)
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), 2))
    tokens = jax.random.randint(jax.random.key(1), (3, 8), 0, 50)
    found = [
        jax.jit(jax.vmap(jax.value_and_grad(lambda p, loss=loss: evaluate(loss, p, tokens).mean)))(params)
        for loss in (
            next_token_loss(apply),
            loss_of_next_tokens(attention_only_losses(config, kernels="xla")),
            loss_of_next_tokens(attention_only_losses(config, kernels="pallas")),
        )
    ]
    for other in found[1:]:
        for one, two in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("activations", "tolerance"), [("float32", 2e-6), ("bfloat16", 3e-2)])
def test_the_language_model_by_attention_kernels_is_that_of_plain_jax(activations, tolerance):
    config = AttentionOnlyConfig(num_heads=2, model_width=64, num_tokens=128, vocabulary=50)
    init, _ = attention_only(config)
    params = init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    tokens = jax.random.randint(jax.random.key(1), (2, 128), 0, 50)

    def value_and_grad(activations, kernels):
        loss_fn = loss_of_next_tokens(attention_only_losses(config, activations, kernels))
        return jax.value_and_grad(lambda p: evaluate(loss_fn, p, tokens).mean)

    program = str(jax.make_jaxpr(value_and_grad(activations, "pallas"))(params))
    attention, between, cross_entropy = 4, 2, 2
    assert program.count("pallas_call") == config.num_layers * (attention + between) + between + cross_entropy
    exact, found = (jax.jit(value_and_grad(*how))(params) for how in (("float32", "xla"), (activations, "pallas")))
    for (path, one), two in zip(jax.tree.leaves_with_path(exact), jax.tree.leaves(found), strict=True):
        name = jax.tree_util.keystr(path)
        if "'key'" in name and "'bias'" in name:
            np.testing.assert_array_equal(two, 0)
            np.testing.assert_allclose(one, 0, atol=1e-7)
        else:
            assert float(jnp.linalg.norm(one - two)) <= tolerance * float(jnp.linalg.norm(one)), name


@pytest.mark.parametrize("kernels", ["xla", "pallas"])
def test_attention_adds_in_the_dtype_of_the_stream(kernels):
    config = AttentionOnlyConfig(num_heads=2, model_width=64, num_tokens=128, vocabulary=50)
    attention = _Attention(config, jnp.dtype("bfloat16"), kernels, nnx.Rngs(0))
    added, bias = jax.eval_shape(attention, *[jnp.zeros((1, 128, 64), "bfloat16")] * 2)
    assert (added.dtype, bias.dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(("dtype", "options"), [("bfloat16", {"xla_gpu_enable_triton_gemm": False}), ("float32", None)])
def test_cross_entropy_lowers_for_a_gpu_and_leaves_products_in_bfloat16_to_cublas(dtype, options):
    products = Products(DotAlgorithmPreset.BF16_BF16_F32, interpret=False)

    def loss(x, weight, bias, labels):
        return jnp.sum(linear_cross_entropy(products, x, weight, bias, labels))

    shapes = [((3, 200, 32), dtype), ((3, 32, 5000), dtype), ((3, 5000), "float32"), ((3, 200), "int32")]
    lowered = lowered_for_a_gpu(jax.vmap(jax.grad(loss)), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 2
    assert _compat.compiler_options(lowered, "gpu") == options
    assert _compat.compiler_options(lowered, "cpu") is None
    assert _compat.compiler_options(jax.jit(jnp.sin).lower(1.0), "gpu") is None


def test_sure_and_large_logits_have_finite_losses_and_exact_zeros():
    weight, labels = jnp.eye(33), jnp.arange(66) % 33
    x = jnp.where(labels[:, None] == jnp.arange(33), 1000.0, -1000.0).at[33:].multiply(0.05)
    bias = jnp.full(33, -200.0)  # the columns that fill the tile must not win

    def losses(x):
        return linear_cross_entropy(Products(None, interpret=True), x, weight, bias, labels)

    found, gradient = jax.jit(lambda x: (losses(x), jax.grad(lambda x: jnp.sum(losses(x)))(x)))(x)
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_allclose(gradient, 0, atol=1e-30)
    unsure = jnp.where(x > 0, -x, x)  # every label at -50 or -1000, as all others
    np.testing.assert_allclose(jax.jit(losses)(unsure), np.log(33), rtol=5e-5)  # an ulp of 1,200


INTERPRETED = Products(None, interpret=True)
MORE_QUERIES, MORE_KEYS = Launch(queries=64, keys=32, warps=4, stages=1), Launch(queries=32, keys=64, warps=4, stages=1)


def heads(dtype, batch=(1,), tokens=128, head_width=32):
    """Queries, keys, values and a gradient of two heads."""
    return list(jax.random.normal(jax.random.key(0), (4, *batch, tokens, 2, head_width)).astype(dtype))


def value_and_gradients(attention, *arguments):
    """The last argument is what is wanted of the result."""
    mixed, back = jax.vjp(attention, *arguments[:-1])
    return mixed, *back(arguments[-1])


@pytest.mark.parametrize(
    ("dtype", "launches", "tokens", "head_width"),
    [
        ("float32", Launches(MORE_QUERIES, MORE_QUERIES, MORE_QUERIES), 128, 32),
        ("float32", Launches(MORE_KEYS, MORE_KEYS, MORE_KEYS), 256, 16),
        ("bfloat16", Launches(), 256, 32),
    ],
)
def test_long_attention_is_that_of_plain_jax(dtype, launches, tokens, head_width):
    *qkv, wanted = heads(dtype, tokens=tokens, head_width=head_width)
    bias = jax.random.normal(jax.random.key(1), (2, head_width))

    def plain(q, k, v, bias):
        return jax.nn.dot_product_attention(q + bias, k, v, is_causal=True, implementation="xla")

    def ours(q, k, v, bias):
        return long_attention(INTERPRETED, jnp.concatenate((q, k), 2), v, bias, launches)

    both = jax.jit(value_and_gradients, static_argnums=0)
    exact = both(plain, *(array.astype("float32") for array in (*qkv, bias, wanted)))
    dtypes = [dtype] * 4 + ["float32"]
    for one, other, expected in zip(exact, both(ours, *qkv, bias, wanted), dtypes, strict=True):
        assert other.dtype == expected
        distance = jnp.linalg.norm(one - other.astype("float32")) / jnp.linalg.norm(one)
        assert float(distance) < (1e-6 if dtype == "float32" else 5e-3)


def test_long_attention_sees_no_later_token():
    q, k, v, _ = heads("float32")
    found = [
        long_attention(
            INTERPRETED,
            jnp.concatenate((q, k.at[:, 70:].mul(scale)), 2),
            v.at[:, 70:].add(scale),
            launches=Launches(MORE_KEYS),
        )
        for scale in (1.0, 1000.0)
    ]
    np.testing.assert_array_equal(found[0][:, :70], found[1][:, :70])
    assert float(jnp.abs(found[0][:, 70:] - found[1][:, 70:]).min()) > 0.1


@pytest.mark.parametrize(
    ("dtype", "launches", "by", "keys", "tolerance"),
    [
        ("float32", Launches(MORE_QUERIES, MORE_QUERIES, MORE_QUERIES), 200, (0.5, 1.0), 1e-4),
        ("float32", Launches(MORE_KEYS, MORE_KEYS, MORE_KEYS), -200, (0.5, 1.0), 1e-4),
        ("bfloat16", Launches(), -200, (1.0, 1.0), 5e-3),  # equal keys, as it rounds scores of hundreds by one
    ],
)
def test_long_attention_takes_scores_of_any_size(dtype, launches, by, keys, tolerance):
    """From the 70th query on scores of the first head are as far out as is in range, those of the second far beyond."""
    q, k, v, wanted = heads(dtype)
    k = k.at[..., 0].set(jnp.linspace(*keys, 128).astype(dtype)[:, None])
    far = q.at[:, 70:, :, 0].set((32**0.5 * by * jnp.array([0.3, 1.0])).astype(dtype))

    def ours(q, k, v):
        return long_attention(INTERPRETED, jnp.concatenate((q, k), 2), v, launches=launches)

    def plain(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")

    both = jax.jit(value_and_gradients, static_argnums=0)
    found = both(ours, far, k, v, wanted)
    for one, other in zip(both(plain, *(a.astype("float32") for a in (far, k, v, wanted))), found, strict=True):
        assert float(jnp.linalg.norm(one - other.astype("float32")) / jnp.linalg.norm(one)) < tolerance
    np.testing.assert_array_equal(found[0][:, :70], both(ours, q, k, v, wanted)[0][:, :70])


def test_long_attention_has_no_float16():
    q, k, v, _ = heads("float16")
    with pytest.raises(ValueError, match="choose bfloat16 or float32"):
        long_attention(INTERPRETED, jnp.concatenate((q, k), 2), v)
    assert attention_products(q.shape, q.dtype, "pallas") is None


def test_long_attention_of_chains_is_that_of_one_chain():
    launches = Launches(MORE_QUERIES, MORE_QUERIES, MORE_KEYS)

    def ours(q, k, v):
        return long_attention(INTERPRETED, jnp.concatenate((q, k), 2), v, launches=launches)

    one_chain = jax.jit(lambda *arrays: value_and_gradients(ours, *arrays))
    q, *others = heads("float32", batch=(3, 1))
    arguments = q.at[1].mul(1000.0), *others  # out of range, as the others are not
    together = jax.jit(jax.vmap(one_chain))(*arguments)
    for chain in range(3):
        for one, all_of_them in zip(one_chain(*(array[chain] for array in arguments)), together, strict=True):
            np.testing.assert_array_equal(one, all_of_them[chain])


@pytest.mark.parametrize(
    ("kernels", "tokens", "ours"), [("pallas", 128, True), ("pallas", 96, False), ("auto", 128, False)]
)
def test_long_attention_is_taken_where_it_is_asked_for_and_fits(kernels, tokens, ours):
    assert fits(tokens, 32) == (tokens == 128)
    assert (attention_products((1, tokens, 2, 32), jnp.dtype("float32"), kernels) is not None) == ours


@pytest.mark.parametrize(("algorithm", "dtype"), [("BF16_BF16_F32", "bfloat16"), ("TF32_TF32_F32", "float32")])
def test_long_attention_lowers_for_a_gpu(algorithm, dtype):
    products = Products(DotAlgorithmPreset[algorithm], interpret=False)
    both = functools.partial(value_and_gradients, functools.partial(long_attention, products))
    shapes = [jax.ShapeDtypeStruct((3, 4, 384, heads, 32), dtype) for heads in (4, 2, 2)]
    text = lowered_for_a_gpu(jax.vmap(both), *shapes).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 4


def test_models_refuse_an_unknown_switch():
    for build in (attention_only, attention_only_losses):
        with pytest.raises(ValueError, match="kernels='cuda' is unknown"):
            build(AttentionOnlyConfig(), kernels="cuda")
