"""Every sampler against the stationary law of its own recursion: the test that finds a sampler that samples wrongly.

Errors are Monte Carlo alone: independent chains, z-scores from the spread between them, seeds fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import llcjax
from llcjax.chain import Recording
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.posterior import LocalPosterior
from llcjax.samplers import SAMPLERS, SamplerState
from llcjax.samplers.preconditioned import Moments

ROTATION, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
SPECTRA = {
    "isotropic": np.eye(3),
    "correlated": ROTATION @ np.diag([0.2, 0.6, 1.0]) @ ROTATION.T,
}
N_BETA, LOCALIZATION = 40.0, 2.0
MASKS = {"free": None, "masked": np.array([True, False, True])}
CHAINS = 512


def target(hessian, mask=None, **options):
    matrix = jnp.asarray(hessian, jnp.float32)
    return LocalPosterior(lambda w, _: 0.5 * w @ matrix @ w, jnp.zeros(3), N_BETA, LOCALIZATION, mask=mask, **options)


def second_moments(sampler, posterior, *, steps_between, burnin, draws=8, prepare=lambda state: state):
    """Mean of w w^T over independent chains and its standard error, each (3, 3)."""

    def chain(index):
        key = jax.random.fold_in(jax.random.key(11), index)

        def step(state, t):
            return sampler.step(jax.random.fold_in(key, t), state, ())[0], None

        state = prepare(sampler.init(posterior.anchor))
        state, _ = jax.lax.scan(step, state, jnp.arange(burnin))

        def draw(carry, d):
            state, _ = jax.lax.scan(step, carry, burnin + d * steps_between + jnp.arange(steps_between))
            return state, jnp.outer(state.params, state.params)

        return jax.lax.scan(draw, state, jnp.arange(draws))[1].mean(0)

    products = np.asarray(jax.jit(jax.vmap(chain))(jnp.arange(CHAINS)), np.float64)
    return products.mean(0), products.std(0, ddof=1) / np.sqrt(CHAINS)


def assert_equal_moments(found, error, exact, sampled=slice(None)):
    z = ((found - exact) / np.where(error > 0, error, np.inf))[sampled][:, sampled]
    assert np.all(np.abs(z) < 4.5), z
    relative = (error / np.sqrt(np.outer(np.diag(exact), np.diag(exact))).clip(1e-30))[sampled][:, sampled]
    assert np.all(relative < 0.05), relative


def lyapunov(force_matrix, steps, mask):
    """Covariance of w <- (1 - S/2 P) w + sqrt(S) xi on the sampled entries."""
    keep = np.flatnonzero(np.ones(3, bool) if mask is None else mask)
    transition = np.eye(3) - np.diag(steps) @ force_matrix / 2
    part = np.ix_(keep, keep)
    exact = np.zeros((3, 3))
    exact[part] = scipy.linalg.solve_discrete_lyapunov(transition[part], np.diag(steps)[part])
    return exact, keep


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_sgld(spectrum, mask):
    hessian, mask = SPECTRA[spectrum], MASKS[mask]
    posterior, step_size = target(hessian, mask), 0.03
    found, error = second_moments(SAMPLERS["sgld"](posterior, step_size), posterior, steps_between=40, burnin=200)
    precision = N_BETA * hessian + LOCALIZATION * np.eye(3)
    exact, keep = lyapunov(precision, np.full(3, step_size), mask)
    assert_equal_moments(found, error, exact, keep)
    if mask is not None:
        assert np.all(found[1] == 0)
    continuum = np.zeros((3, 3))
    continuum[np.ix_(keep, keep)] = np.linalg.inv(precision[np.ix_(keep, keep)])
    # The step is large enough for the test to tell the discretised law from the continuum.
    assert np.trace(exact) > 1.1 * np.trace(continuum)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["rmsprop_sgld", "adam_sgld"])
def test_preconditioned_with_frozen_moments(name, mask):
    hessian, mask = SPECTRA["correlated"], MASKS[mask]
    posterior, step_size, stability = target(hessian, mask), 0.02, 0.1
    second = jnp.array([0.25, 1.0, 4.0])
    options = {"decay": 1.0, "stability": stability, "bias_correction": 0.0}
    sampler = SAMPLERS[name](posterior, step_size, **options, **({"momentum": 0.0} if name == "adam_sgld" else {}))

    def freeze(state):
        return SamplerState(state.params, Moments(jnp.int32(0), state.carried.first, second))

    found, error = second_moments(sampler, posterior, steps_between=60, burnin=400, prepare=freeze)
    steps = step_size / (np.sqrt(np.asarray(second)) + stability)
    exact, keep = lyapunov(N_BETA * hessian + LOCALIZATION * np.eye(3), steps, mask)
    assert_equal_moments(found, error, exact, keep)


def numpy_preconditioned(hessian, step_size, momentum, decay, stability, burnin, rng):
    w, m, v = np.zeros((CHAINS, 3)), np.zeros((CHAINS, 3)), np.zeros((CHAINS, 3))
    products = []
    for t in range(1, burnin + 8 * 60 + 1):
        g = w @ hessian
        m, v = momentum * m + (1 - momentum) * g, decay * v + (1 - decay) * g**2
        step = step_size / (np.sqrt(v / (1 - decay**t)) + stability)
        drift = N_BETA * m / (1 - momentum**t) + LOCALIZATION * w
        w = w - step / 2 * drift + np.sqrt(step) * rng.normal(size=w.shape)
        if t > burnin and (t - burnin) % 60 == 0:
            products.append(w[:, :, None] * w[:, None, :])
    return np.mean(products, 0)


def numpy_sgnht(hessian, step_size, diffusion, burnin, between, rng):
    w, v, friction = np.zeros((CHAINS, 3)), np.zeros((CHAINS, 3)), np.full((CHAINS, 1), diffusion)
    products = []
    for t in range(1, burnin + 8 * between + 1):
        force = N_BETA * w @ hessian + LOCALIZATION * w
        noise = np.sqrt(2 * diffusion * step_size) * rng.normal(size=w.shape)
        v = v - friction * v - step_size * force + noise
        friction = friction + (v**2).mean(1, keepdims=True) - step_size
        w = w + v
        if t > burnin and (t - burnin) % between == 0:
            products.append(w[:, :, None] * w[:, None, :])
    return np.mean(products, 0)


@pytest.mark.parametrize("name", ["rmsprop_sgld", "adam_sgld", "sgnht"])
def test_adaptive_samplers_equal_an_independent_float64_run(name, record_property):
    """Their stationary law has no closed form; the same recursion in NumPy has the same one."""
    hessian, rng = SPECTRA["correlated"], np.random.default_rng(7)
    posterior, step_size = target(hessian), 4e-3
    if name == "sgnht":
        options, between = {"diffusion": 0.1}, 100
        products = numpy_sgnht(hessian, step_size, 0.1, 1000, between, rng)
    else:
        options, between = {"decay": 0.95, "stability": 0.1}, 60
        momentum = 0.9 if name == "adam_sgld" else 0.0
        products = numpy_preconditioned(hessian, step_size, momentum, 0.95, 0.1, 1000, rng)
    sampler = SAMPLERS[name](posterior, step_size, **options)
    found, error = second_moments(sampler, posterior, steps_between=between, burnin=1000)
    spread = products.std(0, ddof=1) / np.sqrt(CHAINS)
    z = (found - products.mean(0)) / np.hypot(error, spread)
    assert np.all(np.abs(z) < 4.5), z
    exact = np.linalg.inv(N_BETA * hessian + LOCALIZATION * np.eye(3))
    bias = np.trace(found) / np.trace(exact) - 1
    record_property("relative_bias_of_the_variance", float(bias))
    # Momentum in the drift heats the chain: Adam-SGLD is far from the target even here.
    assert abs(bias) < {"sgnht": 0.1, "rmsprop_sgld": 0.5, "adam_sgld": 2.0}[name], bias


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_oracles_have_the_exact_posterior(name, spectrum, mask):
    hessian, mask = SPECTRA[spectrum], MASKS[mask]
    posterior = target(hessian, mask)
    step_size, options = (0.04, {}) if name == "mala" else (0.01, {"num_leapfrog_steps": 8})
    sampler = SAMPLERS[name](posterior, step_size, **options)
    found, error = second_moments(sampler, posterior, steps_between=40 if name == "mala" else 6, burnin=100)
    keep = np.flatnonzero(np.ones(3, bool) if mask is None else mask)
    part, exact = np.ix_(keep, keep), np.zeros((3, 3))
    exact[part] = np.linalg.inv((N_BETA * hessian + LOCALIZATION * np.eye(3))[part])
    assert_equal_moments(found, error, exact, keep)


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_oracles_on_a_quartic_with_a_box(name):
    """Skewed, bounded and not Gaussian: L = w^4 + w^3 on |w| <= 0.7, against the integral."""
    posterior = LocalPosterior(lambda w, _: jnp.sum(w**4 + w**3), jnp.zeros(1), 10.0, 0.5, 0.3, 0.7)
    sampler = SAMPLERS[name](posterior, 0.05)

    def chain(index):
        key = jax.random.fold_in(jax.random.key(5), index)

        def step(state, t):
            state, info = sampler.step(jax.random.fold_in(key, t), state, ())
            return state, (state.params[0], info.acceptance)

        return jax.lax.scan(step, sampler.init(posterior.anchor), jnp.arange(1500))[1]

    values, acceptance = (np.asarray(x, np.float64)[:, 300:] for x in jax.jit(jax.vmap(chain))(jnp.arange(256)))
    grid = np.linspace(-0.7, 0.7, 200_001)
    density = np.exp(-10 * (grid**4 + grid**3) - 0.25 * grid**2 - 0.15 * grid**2)
    assert np.abs(values).max() <= 0.7 and 0.3 < acceptance.mean() < 1
    for power in (1, 2, 3):
        exact = np.sum(grid**power * density) / np.sum(density)
        per_chain = (values**power).mean(1)
        z = (per_chain.mean() - exact) / (per_chain.std(ddof=1) / np.sqrt(256))
        assert abs(z) < 4, (power, z)


def test_sgld_reflects_at_the_box():
    """A flat loss in a box: the reflected walk is uniform, variance box^2 / 3."""
    posterior = LocalPosterior(lambda w, _: 0.0 * jnp.sum(w), jnp.full(3, 2.0), 1.0, 0.0, 0.0, 0.5)
    sampler = SAMPLERS["sgld"](posterior, 0.05)

    def chain(index):
        key = jax.random.fold_in(jax.random.key(9), index)
        state = sampler.init(posterior.anchor)

        def step(state, t):
            state, _ = sampler.step(jax.random.fold_in(key, t), state, ())
            return state, state.params - 2.0

        return jax.lax.scan(step, state, jnp.arange(400))[1][100::20]

    values = np.asarray(jax.jit(jax.vmap(chain))(jnp.arange(CHAINS)), np.float64)
    assert np.abs(values).max() <= 0.5 + 1e-6
    per_chain = np.square(values).mean((1, 2))
    assert abs(per_chain.mean() - 0.25 / 3) < 4 * per_chain.std(ddof=1) / np.sqrt(CHAINS)


def test_a_box_does_not_round_what_is_inside_it():
    posterior = LocalPosterior(lambda w, _: 0.0 * jnp.sum(w), jnp.ones(3), 1.0, 0.0, 0.0, 1e5)
    w = jnp.array([1.0 + 1e-6, 1.3, 0.2])
    np.testing.assert_array_equal(posterior.confine(w), w)
    with pytest.raises(ValueError, match="does not go with sgnht"):
        SweepConfig(sampler="sgnht", box=1.0)


IDENTITY = dict(localization=2.0, step_size=1e-3, num_chains=3, num_draws=30, batch_size=None)


@pytest.mark.parametrize("name", ["sgld", "sgnht", "mala", "hmc"])
def test_loss_doubled_and_n_beta_halved_is_bit_identical(name, one_device):
    """The factor is data, so that both are one compiled program: powers of two then scale without rounding."""

    def loss(w, batch):
        return batch["factor"] * jnp.square(batch["x"] @ w)

    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    results = []
    for factor in (1.0, 2.0):
        config = SweepConfig(sampler=name, n_beta=64.0 / factor, **IDENTITY)
        data = {"x": x, "factor": np.full(32, factor, np.float32)}
        facts = llcjax.sweep(loss, bank_of(jnp.ones(3)), data, config, devices=one_device)
        results.append(llcjax.estimates(facts)["llc_per_chain"].values)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", SAMPLERS)
def test_frozen_entries_never_change(name, one_device):
    params = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    mask = {"a": False, "b": np.array([True, False, True])}
    config = SweepConfig(sampler=name, n_beta=10.0, **IDENTITY)
    facts = llcjax.sweep(
        lambda p, _: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2),
        bank_of(params), None, config, mask=mask, observe=lambda p: p, devices=one_device,
    )  # fmt: skip
    assert np.all(facts["a"] == params["a"])
    moved = facts["b"].values[..., -1, :, :] != 1
    assert np.all(~moved[..., 1]) and np.all(moved[..., 0].any(-1) & moved[..., 2].any(-1))
    assert facts.attrs["num_params"] == 4


def test_a_masked_llc_is_the_llc_of_the_smaller_model(one_device):
    config = SweepConfig(
        n_beta=50.0,
        localization=1.0,
        step_size=2e-3,
        num_chains=32,
        num_draws=400,
        num_burnin_steps=200,
        batch_size=None,
    )
    full = llcjax.sweep(
        lambda w, _: 0.5 * jnp.sum(jnp.array([1.0, 3.0, 2.0]) * w**2), bank_of(jnp.zeros(3)), None, config,
        mask=np.array([True, False, True]), devices=one_device,
    )  # fmt: skip
    small = llcjax.sweep(
        lambda w, _: 0.5 * jnp.sum(jnp.array([1.0, 2.0]) * w**2), bank_of(jnp.zeros(2)), None, config, key=1,
        devices=one_device,
    )  # fmt: skip
    a, b = (llcjax.estimates(facts).isel(checkpoint=0, setting=0) for facts in (full, small))
    assert abs(float(a["llc"] - b["llc"])) < 4 * np.hypot(a["llc_stderr"], b["llc_stderr"])


def test_sgld_without_noise_is_gradient_descent():
    from llcjax.samplers import add_prior, from_transform
    from llcjax.samplers.transforms import stateless

    posterior = target(SPECTRA["correlated"])
    import optax

    descend = stateless(lambda updates, params, key: jax.tree.map(lambda u: -0.01 / 2 * u, updates))
    sampler = from_transform(posterior, optax.chain(add_prior(posterior), descend))
    state = sampler.init(jnp.array([1.0, -2.0, 0.5]))
    w = np.array([1.0, -2.0, 0.5])
    for t in range(20):
        state, _ = sampler.step(jax.random.key(t), state, ())
        w = w - 0.01 / 2 * (N_BETA * SPECTRA["correlated"] @ w + LOCALIZATION * w)
    np.testing.assert_allclose(state.params, w, rtol=1e-4)


def test_wrong_sampler_settings_get_a_sentence(one_device):
    with pytest.raises(ValueError, match="sampler_options has 'decay', which sgld does not know"):
        SweepConfig(sampler_options={"decay": 0.9})
    with pytest.raises(ValueError, match="exact on the full batch only"):
        llcjax.sweep(
            lambda w, b: jnp.square(b @ w), bank_of(jnp.ones(3)), np.ones((8, 3), np.float32),
            SweepConfig(sampler="mala", batch_size=4), devices=one_device,
        )  # fmt: skip
    with pytest.raises(ValueError, match="leaves no parameter"):
        llcjax.sweep(lambda w, _: jnp.sum(w), bank_of(jnp.ones(3)), None, mask=np.zeros(3, bool), devices=one_device)
    with pytest.raises(ValueError, match="box=-1"):
        SweepConfig(box=-1.0)


def test_oracle_acceptance_is_stored(one_device):
    config = SweepConfig(sampler="mala", n_beta=10.0, **IDENTITY)
    facts = llcjax.sweep(lambda w, _: jnp.sum(w**2), bank_of(jnp.ones(3)), None, config, devices=one_device)
    assert facts["acceptance"].dims == ("checkpoint", "setting", "chain", "draw")
    assert 0.5 < float(facts["acceptance"].mean()) <= 1


@pytest.mark.parametrize("between", [1, 3])
def test_acceptance_of_sgld_is_that_of_mala(between, one_device):
    """At the same step size, on the full batch, thinned or not: MALA's own mean acceptance."""
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    means = {}
    for name in ("sgld", "mala"):
        config = SweepConfig(
            sampler=name, n_beta=100.0, localization=2.0, step_size=8e-3, num_chains=64, num_draws=150,
            num_burnin_steps=60, num_steps_between_draws=between, batch_size=None,
            acceptance_every=1 if name == "sgld" else 0,
        )  # fmt: skip
        facts = llcjax.sweep(lambda w, b: 0.5 * jnp.square(b @ w), bank_of(jnp.zeros(3)), x, config, devices=one_device)
        means[name] = facts["acceptance"].isel(draw=slice(60, None)).mean(("checkpoint", "setting", "draw")).values
    assert 0.5 < means["sgld"].mean() < 0.98
    # SGLD's chain is a little wider than the target, so its moves are accepted a little less or more: 2%.
    assert abs(means["sgld"].mean() - means["mala"].mean()) < 0.02 + 4 * means["mala"].std() / 8


def test_acceptance_on_minibatches_is_judged_on_batch_and_on_all_data(one_device):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    config = SweepConfig(
        n_beta=100.0,
        localization=2.0,
        step_size=8e-3,
        num_chains=8,
        num_draws=60,
        batch_size=8,
        acceptance_every=4,
        acceptance_on_all_data=True,
    )
    facts = llcjax.sweep(lambda w, b: 0.5 * jnp.square(b @ w), bank_of(jnp.zeros(3)), x, config, devices=one_device)
    for name in ("acceptance", "acceptance_full"):
        values = facts[name].values[0, 0]
        assert np.isfinite(values[:, ::4]).all() and np.isnan(values[:, 1::4]).all()
        assert np.all((values[:, ::4] >= 0) & (values[:, ::4] <= 1))
    # A step along a minibatch gradient looks better to its own batch than to all data.
    assert np.nanmean(facts["acceptance"]) > np.nanmean(facts["acceptance_full"])
    with pytest.raises(ValueError, match="acceptance_every=2 is for sgld"):
        SweepConfig(sampler="sgnht", acceptance_every=2)


def test_gradient_norm_is_recorded(one_device):
    config = SweepConfig(n_beta=10.0, **IDENTITY)
    facts = llcjax.sweep(lambda w, _: jnp.sum(w**2), bank_of(jnp.ones(3)), None, config, devices=one_device)
    assert facts["gradient_norm"].values[0, 0, 0, 0] == pytest.approx(2 * np.sqrt(3), rel=1e-6)


def test_recording_of_acceptance_in_run_chain():
    posterior = target(SPECTRA["isotropic"])
    _, draws = llcjax.run_chain(
        0, SAMPLERS["hmc"](posterior, 0.01), posterior, lambda _: (), num_draws=5, recording=Recording(paired=False)
    )
    assert draws.acceptance.shape == (5,) and draws.baseline_loss is None
