"""Trace and top eigenvalues of the Hessian against dense Hessians and known matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from llcjax.checkpoints import CheckpointBank
from llcjax.curvature import curvature, hessian_product, lanczos


def sample(key, count):
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (count, 3))
    return x, jnp.sin(x[:, 0]) + 0.1 * jax.random.normal(noise_key, (count,))


def loss(params, batch):
    x, y = batch
    return jnp.square(jnp.tanh(x @ params["in"]) @ params["out"] - y)


def small_bank():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(2, 3, 4)), "out": rng.normal(size=(2, 4))}
    return CheckpointBank(params=jax.tree.map(np.float32, params), steps=np.array([0, 5]))


def dense_hessian(params, batch):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda p: jnp.mean(loss(unravel(p), batch)))(flat), np.float64)


def test_product_and_lanczos_against_the_dense_hessian():
    batch, params = sample(jax.random.key(1), 64), small_bank().checkpoint(1)
    dense = dense_hessian(params, batch)
    product, size = hessian_product(loss, params, batch)
    vector = np.random.default_rng(0).normal(size=size).astype(np.float32)
    np.testing.assert_allclose(product(vector), dense @ vector, rtol=1e-3, atol=1e-4)
    exact = np.linalg.eigvalsh(dense)
    early = lanczos(product, size, jax.random.key(2), num_steps=6, num_top=3)
    nearest = np.abs(np.asarray(early.values)[:, None] - exact).min(1)
    assert np.all(nearest <= early.residuals + 1e-3) and np.max(early.residuals) > 1e-3
    top = lanczos(product, size, jax.random.key(2), num_steps=16, num_top=3)
    np.testing.assert_allclose(top.values, exact[::-1][:3], rtol=2e-3)


def test_lanczos_stops_where_the_space_is_exhausted():
    matrix = jnp.diag(jnp.array([3.0, 3.0, 1.0, 1.0, 0.0, 0.0]))
    top = lanczos(lambda v: matrix @ v, 6, jax.random.key(0), num_steps=6, num_top=2)
    np.testing.assert_allclose(top.values, [3, 1], atol=1e-4)  # a Krylov space sees each value once


def test_trace_of_a_random_quadratic_is_within_its_error():
    # loss = |A_b w|^2 / 2 with A_b of standard normals: the mean Hessian is 3 times the identity of 20.
    def normals(key, count):
        return jax.random.normal(key, (count, 3, 20))

    def quadratic(params, batch):
        return jnp.sum(jnp.square(batch @ params), -1) / 2

    bank = CheckpointBank(params=np.ones((1, 20), np.float32), steps=np.array([0]))
    found = curvature(quadratic, bank, normals, num_probes=64, batch_size=8, eigenvalue_batch_size=2000, num_steps=10)
    assert 0 < float(found["hessian_trace_stderr"][0]) < 3
    assert abs(float(found["hessian_trace"][0]) - 60) < 4 * float(found["hessian_trace_stderr"][0])
    assert float(found["eigenvalue"][0, 0]) == pytest.approx(3, rel=0.2)  # biased upwards by 2,000 examples


def test_curvature_of_a_network_against_dense_hessians():
    bank = small_bank()
    found = curvature(loss, bank, sample, num_probes=200, batch_size=32, eigenvalue_batch_size=1024, num_steps=16)
    for index in range(2):
        dense = dense_hessian(bank.checkpoint(index), sample(jax.random.key(9), 50_000))
        trace, error = float(found["hessian_trace"][index]), float(found["hessian_trace_stderr"][index])
        assert abs(trace - np.trace(dense)) < 4 * (error + 0.005 * np.trace(dense))
        assert float(found["eigenvalue"][index, 0]) == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=0.15)
    assert found["eigenvalue"].dims == ("checkpoint", "order")


@pytest.mark.parametrize("options", [{"num_probes": 1}, {"num_batches": 1}, {"num_top": 0}, {"num_top": 50}])
def test_bad_counts_get_a_sentence(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        curvature(loss, small_bank(), sample, **options)
