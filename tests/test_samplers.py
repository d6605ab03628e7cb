"""Every sampler keeps the contract, and has the stationary law of its own recursion."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llcjax
from llcjax import reference
from llcjax.chain import Recording
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.posterior import LocalPosterior
from llcjax.samplers import SAMPLERS, Sampler, SamplerState, StepInfo, sgld

CURVATURE = np.array([0.05, 0.5, 1.0, 3.0])


def quadratic(w, _):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * w["a"] ** 2)


ANCHOR = {"a": jnp.zeros(4)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_conformance(name):
    posterior = LocalPosterior(quadratic, {"a": jnp.ones(4)}, 10.0, 1.0)
    sampler = SAMPLERS[name](posterior, 1e-2)
    assert isinstance(sampler, Sampler)
    assert list(inspect.signature(sampler.init).parameters)[:1] == ["params"]
    assert list(inspect.signature(sampler.step).parameters)[:3] == ["key", "state", "batch"]
    start = {"a": jnp.array([1.0, 2.0, 3.0, 4.0])}
    state = sampler.init(start)
    assert isinstance(state, SamplerState)
    jax.tree.map(np.testing.assert_array_equal, state.params, start)
    moved, info = jax.jit(sampler.step)(jax.random.key(0), state, ())
    assert isinstance(moved, SamplerState) and isinstance(info, StepInfo)
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, state)
    # The loss belongs to the position before the update.
    assert float(info.loss.mean) == pytest.approx(float(quadratic(start, ())), rel=1e-6)
    again, _ = jax.jit(sampler.step)(jax.random.key(0), state, ())
    jax.tree.map(np.testing.assert_array_equal, moved.params, again.params)
    other, _ = jax.jit(sampler.step)(jax.random.key(1), state, ())
    assert np.all(other.params["a"] != moved.params["a"])
    states = jax.vmap(sampler.init)(jax.tree.map(lambda x: jnp.stack([x, x]), start))
    keys = jax.random.split(jax.random.key(2), 2)
    pair, _ = jax.vmap(sampler.step, in_axes=(0, 0, None))(keys, states, ())
    assert np.all(pair.params["a"][0] != pair.params["a"][1]), "vmapped chains must have noise of their own"


def test_sgld_update_is_the_formula():
    posterior = LocalPosterior(quadratic, {"a": jnp.array([1.0, -1.0, 0.5, 0.0])}, 7.0, 3.0)
    w = np.array([0.3, 0.2, -0.1, 2.0])
    key, step_size = jax.random.key(5), 0.01
    moved, _ = sgld(posterior, step_size).step(key, sgld(posterior, step_size).init({"a": jnp.asarray(w)}), ())
    noise = np.asarray(jax.random.normal(key, (4,)))
    gradient = 7.0 * CURVATURE * w + 3.0 * (w - np.array([1.0, -1.0, 0.5, 0.0]))
    expected = w - step_size / 2 * gradient + np.sqrt(step_size) * noise
    np.testing.assert_allclose(moved.params["a"], expected, rtol=1e-5, atol=1e-6)


def test_sgld_has_the_stationary_law_of_the_discretised_chain():
    """Variance of each direction against 1/(p (1 - step_size p/4)); the error is Monte Carlo alone.

    256 independent chains of 40 draws each, 50 steps apart: every direction forgets within that (the slowest keeps
    (1 - step_size * p_min / 2)^50 = 0.13), so the 10,240 squares have a relative error of about 1.5%.
    """
    n_beta, localization, step_size = 100.0, 1.0, 0.0125
    posterior = LocalPosterior(quadratic, ANCHOR, n_beta, localization)

    def chain(index):
        key = jax.random.fold_in(jax.random.key(17), index)
        _, draws = llcjax.run_chain(
            key, sgld(posterior, step_size), posterior, lambda _: (), num_draws=40, num_burnin_steps=500,
            num_steps_between_draws=50, recording=Recording(paired=False, observe=lambda w: w["a"]),
        )  # fmt: skip
        return draws.observed[-40:]

    squares = np.square(np.asarray(jax.jit(jax.vmap(chain))(jnp.arange(256)), np.float64))
    per_chain = squares.mean(1)
    error = per_chain.std(0, ddof=1) / np.sqrt(256)
    exact = reference.sgld_variance(CURVATURE, n_beta=n_beta, localization=localization, step_size=step_size)
    z = (per_chain.mean(0) - exact) / error
    assert np.all(error / exact < 0.03)
    assert np.all(np.abs(z) < 4), z
    continuum = 1 / (n_beta * CURVATURE + localization)
    # The discretisation is visible: the stiffest direction has 1/(1 - 0.94) times the variance of the continuum.
    assert exact[-1] / continuum[-1] > 10 and abs(per_chain.mean(0)[-1] / exact[-1] - 1) < 0.1


def test_llc_of_a_quadratic_is_the_discretised_closed_form():
    n_beta, localization, step_size = 400.0, 2.0, 1e-3
    config = SweepConfig(
        n_beta=n_beta, localization=localization, step_size=step_size, num_chains=64, num_draws=4000,
        num_burnin_steps=1000, batch_size=None, draws_per_chunk=1000,
    )  # fmt: skip
    result = llcjax.sweep(quadratic, bank_of(ANCHOR), None, config, devices=jax.local_devices()[:1])
    table = llcjax.estimates(result).isel(checkpoint=0, setting=0)
    exact = reference.quadratic_llc(CURVATURE, n_beta=n_beta, localization=localization, step_size=step_size)
    z = (float(table["llc"]) - exact) / float(table["llc_stderr"])
    assert abs(z) < 4, z
    assert float(table["llc_stderr"]) / exact < 0.03
    assert table["verdict"].item() == "ok", table["sentence"].item()


def test_a_start_from_the_prior_has_its_law():
    config = SweepConfig(
        n_beta=0.0,
        localization=25.0,
        step_size=1e-3,
        num_chains=2000,
        num_draws=1,
        batch_size=None,
        init="prior",
    )
    result = llcjax.sweep(quadratic, bank_of(ANCHOR), None, config, devices=jax.local_devices()[:1])
    squares = np.square(result["distance"].values.ravel().astype(np.float64))
    # |w - w*|^2 * localization is chi squared with 4 degrees of freedom: mean 4, variance 8.
    assert abs(squares.mean() * 25 - 4) < 4 * np.sqrt(8 / 2000)


def test_unstable_step_is_refused_by_the_closed_form():
    with pytest.raises(ValueError, match="must stay below 0.04"):
        reference.sgld_variance(np.array([1.0]), n_beta=99.0, localization=1.0, step_size=0.05)
