"""What stands between blocks as one kernel a direction, beside the same in plain jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llcjax.models.half_linear import mapped
from llcjax.models.kernels import Products
from llcjax.models.kernels.residual_norm import Norm, embedding_norm, residual_norm
from tests.test_kernels import lowered_for_a_gpu

INTERPRETED = Products(None, interpret=True)
WIDTH, TOKENS, VOCABULARY = 256, 16, 11


def arrays(batch, dtype="float32"):
    """Two sets of rows, a bias, a table, token ids, parameters of a norm, and what is wanted of three results."""
    keys = jax.random.split(jax.random.key(0), 6)
    stream, added = jax.random.normal(keys[0], (2, batch, TOKENS, WIDTH)).astype(dtype)
    bias, scale, shift = jax.random.normal(keys[1], (3, WIDTH))
    norm = Norm(scale, shift, jax.random.normal(keys[2], (TOKENS, WIDTH)))
    wanted = tuple(jax.random.normal(keys[3], (3, batch, TOKENS, WIDTH)).astype(dtype))
    table = jax.random.normal(keys[4], (VOCABULARY, WIDTH))
    return stream, added, bias, table, jax.random.randint(keys[5], (batch, TOKENS), 0, VOCABULARY), norm, wanted


def plain_norm(stream, norm):
    x = stream.astype("float32")
    normed = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm.scale_D + norm.shift_D
    results = (normed,) if norm.positions_TD is None else (stream, normed, normed + norm.positions_TD)
    return tuple(result.astype(stream.dtype) for result in results)


def values_and_gradients(function, *arguments, wanted):
    results, back = jax.vjp(function, *arguments)
    return results, back(wanted[-len(results) :])


def assert_alike(exact, found, tolerance):
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype
        distance = jnp.linalg.norm((one - other).astype("float32")) / jnp.linalg.norm(one.astype("float32"))
        assert float(distance) < tolerance


@pytest.mark.parametrize("batch", [7, 22])
@pytest.mark.parametrize("placed", [True, False])
def test_sum_and_norm_are_those_of_plain_jax(batch, placed):
    stream, added, bias, _, _, norm, wanted = arrays(batch)
    norm = norm if placed else norm._replace(positions_TD=None)
    both = jax.jit(lambda f: values_and_gradients(f, stream, added, bias, norm, wanted=wanted), static_argnums=0)
    plain = both(lambda stream, added, bias, norm: plain_norm(stream + added + bias, norm))
    assert_alike(plain, both(lambda *arguments: residual_norm(INTERPRETED, *arguments)), 1e-6)


def test_rows_of_16_bits_are_rounded_once():
    stream, added, bias, _, _, norm, wanted = arrays(4, "bfloat16")
    plain = jax.jit(
        lambda *arguments: values_and_gradients(
            lambda stream, added, bias, norm: plain_norm(stream + added + bias, norm),
            *arguments,
            wanted=tuple(one.astype("float32") for one in wanted),
        )
    )(stream.astype("float32"), added.astype("float32"), bias, norm)
    found = jax.jit(lambda *a: values_and_gradients(lambda *b: residual_norm(INTERPRETED, *b), *a, wanted=wanted))(
        stream, added, bias, norm
    )
    gradients = jax.tree.map(lambda leaf: leaf.dtype.name, found[1])
    assert gradients == ("bfloat16", "bfloat16", "float32", Norm("float32", "float32", "float32"))
    assert_alike(plain, jax.tree.map(lambda leaf: leaf.astype("float32"), found), 3e-3)


def test_embedding_and_norm_are_those_of_plain_jax():
    *_, table, tokens, norm, wanted = arrays(6)
    both = jax.jit(lambda f: values_and_gradients(f, table, norm, wanted=wanted), static_argnums=0)
    plain = both(lambda table, norm: plain_norm(table[tokens], norm))
    float32 = jnp.dtype("float32")
    assert_alike(plain, both(lambda t, norm: embedding_norm(INTERPRETED, float32, t, tokens, norm)), 1e-6)


def test_chains_are_those_of_one_chain():
    *_, table, tokens, norm, wanted = arrays(3)
    one_chain = jax.jit(
        lambda table: values_and_gradients(
            lambda t: embedding_norm(INTERPRETED, jnp.dtype("float32"), t, tokens, norm), table, wanted=wanted
        )
    )
    tables = jnp.stack([table, 2 * table])
    together = jax.jit(jax.vmap(one_chain))(tables)
    for chain in range(2):
        assert_alike(one_chain(tables[chain]), jax.tree.map(lambda leaf, at=chain: leaf[at], together), 1e-6)


def test_negative_tokens_count_from_the_end_and_those_beyond_have_no_row():
    *_, table, tokens, norm, _ = arrays(2)
    wrong = tokens.at[0, 3].set(VOCABULARY).at[1, 5].set(-1)
    float32 = jnp.dtype("float32")

    def both(rows):
        return values_and_gradients(lambda table: (rows(table),), table, wanted=(jnp.ones((*wrong.shape, WIDTH)),))

    plain = both(lambda table: jnp.take(table, wrong, axis=0))
    found = both(lambda table: embedding_norm(INTERPRETED, float32, table, wrong, norm)[0])
    jax.tree.map(np.testing.assert_array_equal, plain, found)
    assert np.isnan(found[0][0][0, 3]).all() and np.isfinite(found[1][0]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_lower_for_a_gpu(dtype):
    products = Products(None, interpret=False)
    stream, added, bias, table, tokens, norm, wanted = arrays(4, dtype)

    def both(stream, added, bias, table, norm):
        results, back = jax.vjp(lambda *a: residual_norm(products, *a), stream, added, bias, norm)
        begun, back_again = jax.vjp(lambda t, n: embedding_norm(products, jnp.dtype(dtype), t, tokens, n), table, norm)
        return results, back(wanted), begun, back_again(wanted)

    chains = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), (stream, added, bias, table, norm))
    assert lowered_for_a_gpu(jax.vmap(both), *chains).as_text().count("__gpu$xla.gpu.triton") == 4


@pytest.mark.parametrize("rows", [1, 7, 24])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_matrix_is_added_up_in_float32(rows, dtype):
    x, dy = jax.random.normal(jax.random.key(0), (2, rows, 5)).astype(dtype)
    weight = jax.random.normal(jax.random.key(1), (5, 5))
    found, back = jax.vjp(mapped, x, weight)
    dx, d_weight = back(dy)
    assert (found.dtype, dx.dtype, d_weight.dtype) == (dtype, dtype, "float32")
    np.testing.assert_array_equal(found, x @ weight.astype(dtype))
    exact = np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)
    np.testing.assert_allclose(d_weight, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dx, dy @ weight.astype(dtype).T)
