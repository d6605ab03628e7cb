"""Decaying step sizes: the schedule, its law, and what they leave as it was."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llcjax
from llcjax.chain import Recording
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.job import launch_args
from llcjax.posterior import LocalPosterior
from llcjax.samplers import DECAYING, SAMPLERS, sgld, step_share
from llcjax.sweep import make_job

CURVATURE = np.array([0.3, 1.0, 2.0], np.float32)
ANCHOR = np.array([0.4, -0.2, 0.1], np.float32)
BASE = dict(n_beta=20.0, localization=2.0, step_size=0.02, num_chains=2, batch_size=None, step_size_decay=0.6,
            step_size_decay_time=7.0)  # fmt: skip


def quadratic(w, _):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURE) * w**2)


def descent(name, num_steps):
    """Positions of a chain without noise: gradient descent on U with the schedule."""
    w, first, second, path = ANCHOR.astype(float), 0.0, 0.0, []
    momentum = 0.9 if name == "adam_sgld" else 0.0
    for t in range(num_steps):
        path.append(w)
        step = 0.02 * (1 + t / 7.0) ** -0.6
        gradient = CURVATURE * w
        if name != "sgld":
            first = momentum * first + (1 - momentum) * gradient
            second = 0.99 * second + 0.01 * gradient**2
            step = step / (np.sqrt(second / (1 - 0.99 ** (t + 1))) + 0.1)
            gradient = first / (1 - momentum ** (t + 1))
        w = w - step / 2 * (20.0 * gradient + 2.0 * (w - ANCHOR))
    return np.array(path)


@pytest.mark.parametrize("name", DECAYING)
def test_without_noise_a_chain_is_gradient_descent_with_the_schedule(name, monkeypatch, one_device):
    silent = lambda key, tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
    for module in ("sgld", "preconditioned"):
        monkeypatch.setattr(sys.modules[f"llcjax.samplers.{module}"], "normal_like", silent)
    config = SweepConfig(**BASE, sampler=name, num_draws=11, num_steps_between_draws=3, draws_per_chunk=4)

    def loss(w, batch):  # a loss of its own: programs with noise are cached
        return quadratic(w, batch)

    facts = llcjax.sweep(loss, bank_of(ANCHOR), None, config, observe=lambda w: w, devices=one_device)
    found = facts["observed"].values[0, 0]
    for chain in found:
        np.testing.assert_allclose(chain, descent(name, 31)[::3], rtol=2e-5, atol=1e-6)


def variance(curvature, num_steps, share):
    """Variance of a chain that starts at the minimum: V <- (1 - eps p / 2)^2 V + eps."""
    precision, value = 100.0 * curvature + 1.0, 0.0
    for t in range(num_steps):
        step = 0.02 * share(t)
        value = (1 - step * precision / 2) ** 2 * value + step
    return value


def test_the_bias_of_the_steps_fades():
    """4,096 chains x 3 equal directions: relative Monte-Carlo error of a variance sqrt(2 / 12,288) = 1.3%."""
    settings = dict(n_beta=100.0, localization=1.0, step_size=0.02, num_chains=4096, batch_size=None, num_draws=4,
                    num_steps_between_draws=1000)  # fmt: skip
    found = {}
    for exponent in (0.0, 1.0):
        config = SweepConfig(**settings, step_size_decay=exponent, step_size_decay_time=200.0)
        bank = bank_of(np.zeros(3, np.float32))
        facts = llcjax.sweep(lambda w, _: 0.5 * jnp.sum(w**2), bank, None, config, observe=lambda w: w)
        squares = np.square(facts["observed"].values[0, 0, :, -1].astype(np.float64))
        found[exponent] = squares.mean() * 101.0
        exact = variance(1.0, 3000, lambda t, exponent=exponent: step_share(t, exponent, 200.0)) * 101.0
        assert abs(found[exponent] / exact - 1) < 4 * np.sqrt(2 / squares.size), (exponent, exact)
    # The constant step doubles the variance of the continuum (1 / (1 - eps p / 4) = 2.02), the decayed one adds 3%.
    assert found[0.0] > 1.9 and found[1.0] < 1.1


def test_run_chain_takes_a_sampler_of_the_step(one_device):
    config = SweepConfig(**{**BASE, "num_chains": 1}, num_draws=20)
    facts = llcjax.sweep(quadratic, bank_of(ANCHOR), None, config, observe=lambda w: w, devices=one_device)
    posterior = LocalPosterior(quadratic, jnp.asarray(ANCHOR), jnp.float32(20.0), jnp.float32(2.0))
    _, draws = jax.jit(
        lambda key: llcjax.run_chain(
            key, lambda t: sgld(posterior, 0.02 * step_share(t, 0.6, 7.0)), posterior, lambda _: (), num_draws=20,
            recording=Recording(paired=False, observe=lambda w: w),
        )
    )(jax.random.key(0, impl="threefry2x32"))  # fmt: skip
    np.testing.assert_allclose(draws.observed, facts["observed"].values[0, 0, 0], rtol=1e-5, atol=1e-6)


def test_values_of_the_decay_share_one_program_and_none_leaves_no_trace(one_device):
    def program(**changes):
        config = SweepConfig(**{**BASE, **changes}, num_draws=5)
        job = make_job(quadratic, bank_of(ANCHOR), None, config, devices=one_device)
        compiled = job.program()
        return compiled, launch_args(job, compiled, np.arange(1), 2)

    (one, first), (other, second) = program(), program(step_size_decay=0.9, step_size_decay_time=50.0)
    assert one is other
    one.advance(*first)
    compilations = len(one._compiled)
    other.advance(*second)
    assert len(other._compiled) == compilations
    constant, args = program(step_size_decay=0.0)
    assert "power" in one.advance_fn.lower(*program()[1]).as_text()
    assert "power" not in constant.advance_fn.lower(*args).as_text()


def test_the_acceptance_and_the_bias_are_those_of_the_step_that_was_made(one_device):
    settings = dict(n_beta=100.0, localization=100.0, step_size=0.012, num_chains=8, batch_size=None,
                    num_draws=400, num_burnin_steps=2000, acceptance_every=10)  # fmt: skip
    tables = {}
    for exponent in (0.0, 0.9):
        config = SweepConfig(**settings, step_size_decay=exponent, step_size_decay_time=10.0)
        facts = llcjax.sweep(quadratic, bank_of(0 * ANCHOR), None, config, devices=one_device)
        tables[exponent] = llcjax.estimates(facts).isel(checkpoint=0, setting=0)
    assert float(tables[0.0]["acceptance"]) < 0.75 and float(tables[0.9]["acceptance"]) > 0.98
    assert tables[0.0]["verdict"].item() == "biased" and tables[0.9]["verdict"].item() != "biased"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step_size_decay": 1.5}, "step_size_decay=1.5 must be between 0"),
        ({"step_size_decay": float("nan")}, "step_size_decay=nan must be between 0"),
        ({"step_size_decay_time": 0.0}, "step_size_decay_time=0 must be"),
        *(({"sampler": name}, f"{name} takes one constant step size") for name in SAMPLERS if name not in DECAYING),
    ],
)
def test_bad_input(changes, words):
    with pytest.raises(ValueError, match=words):
        SweepConfig(**{**BASE, **changes})
