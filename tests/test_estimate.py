"""`estimate_llc` on any pure loss: flax, equinox, hand-written; every accepted form of loss and data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llcjax import LLCEstimate, estimate_llc
from llcjax.models import functional

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.1 * RNG.normal(size=200)).astype(np.float32)
BEST = np.linalg.lstsq(X, Y, rcond=None)[0].astype(np.float32)
COMMON = dict(key=0, n_beta=100.0, step_size=1e-3, localization=1.0, num_draws=100, num_burnin_steps=50)


def per_example(w, batch):
    return jnp.square(batch[0] @ w - batch[1])


def test_fields_and_their_shapes():
    r = estimate_llc(per_example, BEST, (X, Y), batch_size=32, chance=float(np.mean(Y**2)), **COMMON)
    assert isinstance(r, LLCEstimate)
    assert r.llc_per_chain.shape == (4,) and r.loss_trace.shape == (4, 100)
    assert r.llc == pytest.approx(r.llc_per_chain.mean(), rel=1e-6)
    assert r.interval[0] < r.llc < r.interval[1] and r.stderr > 0
    assert r.verdict.name in str(r) and r.verdict.sentence
    assert r.init_loss == pytest.approx(float(np.mean(per_example(BEST, (X, Y)))), rel=0.1)
    assert r.n_beta == 100.0 and r.rhat > 0.9 and r.ess > 10
    # Regular model: the full batch would give 4/2 less what the localisation and n_beta take away.
    assert 1.0 < r.llc < 3.5


def test_a_control_tells_whether_the_loss_holds_the_chains():
    """On curvature 1 chains rise by localization / (n_beta + localization) of what draws from its prior do."""
    settings = {"key": 0, "step_size": 1e-4, "localization": 100.0, "num_draws": 2000, "num_burnin_steps": 200}
    for n_beta in (900.0, 10.0):
        r = estimate_llc(_bowl, jnp.zeros(20), None, n_beta=n_beta, num_control_draws=1000, **settings)
        assert r.free_share == pytest.approx(100 / (n_beta + 100), rel=0.15)
        assert "share of the rise" in r._repr_html_()
    assert np.isnan(estimate_llc(_bowl, jnp.zeros(20), None, n_beta=900.0, **settings).free_share)


def _bowl(w, _):
    return 0.5 * jnp.sum(w**2)


def test_scalar_per_example_and_weighted_losses_agree():
    def results(loss):
        return estimate_llc(loss, BEST, (X, Y), batch_size=32, **COMMON).llc

    expected = results(per_example)
    assert results(lambda w, b: jnp.mean(per_example(w, b))) == pytest.approx(expected, rel=1e-3)
    assert results(lambda w, b: (per_example(w, b), jnp.full(32, 3.0))) == pytest.approx(expected, rel=1e-3)
    padded = lambda w, b: (  # noqa: E731
        jnp.stack([per_example(w, b), jnp.full(32, 99.0)], 1),
        jnp.stack([jnp.ones(32), jnp.zeros(32)], 1),
    )
    assert results(padded) == pytest.approx(expected, rel=1e-3)


def test_data_may_be_a_function():
    def draw(key):
        x = jax.random.normal(key, (32, 4))
        return x, x @ BEST

    r = estimate_llc(per_example, BEST, draw, **COMMON)
    assert 1.0 < r.llc < 3.5
    fixed = estimate_llc(per_example, BEST, draw, baseline="dataset", num_baseline_batches=8, **COMMON)
    assert fixed.llc == pytest.approx(r.llc, rel=1e-3)  # the anchor's loss is 0 on every batch


def test_flax_and_hand_written_models():
    init, apply = functional(lambda rngs: nnx.Linear(4, 1, rngs=rngs))
    params = {"kernel": jnp.asarray(BEST)[:, None], "bias": jnp.zeros(1)}
    assert jax.tree.structure(params) == jax.tree.structure(init(jax.random.key(0)))
    r = estimate_llc(lambda p, b: jnp.square(apply(p, b[0])[:, 0] - b[1]), params, (X, Y), batch_size=32, **COMMON)
    assert r.verdict.name in ("ok", "noisy") and 1.0 < r.llc < 4.5


def test_equinox_models():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.Linear(4, "scalar", key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def loss(p, batch):
        return jnp.square(jax.vmap(eqx.combine(p, static))(batch[0]) - batch[1])

    r = estimate_llc(loss, params, (X, Y), batch_size=32, **COMMON)
    assert np.isfinite(r.llc)


def test_auto_n_beta_is_n_over_log_n_for_arrays_only():
    auto = {**COMMON, "n_beta": "auto"}
    assert estimate_llc(per_example, BEST, (X, Y), **auto).n_beta == pytest.approx(200 / np.log(200))
    with pytest.raises(ValueError, match="n_beta='auto'"):
        estimate_llc(per_example, BEST, lambda key: (X, Y), **auto)


def test_bad_input_gets_a_sentence():
    def refused(words, loss=per_example, params=BEST, data=(X, Y), **options):
        with pytest.raises(ValueError) as caught:
            estimate_llc(loss, params, data, **{**COMMON, **options})
        assert words in str(caught.value)

    refused("num_baseline_batches", data=lambda key: (X, Y), baseline="dataset")
    refused("num_chains=0", num_chains=0)
    refused("step_size=-1", step_size=-1.0)
    refused("contain NaN", params=BEST * np.nan)
    refused("returned shape", loss=lambda w, b: b[0][:, None])
    refused("neither a seed nor one jax key", key="0")


def test_same_key_same_numbers():
    a, b = (estimate_llc(per_example, BEST, (X, Y), batch_size=32, **COMMON) for _ in range(2))
    np.testing.assert_array_equal(a.loss_trace, b.loss_trace)
    c = estimate_llc(per_example, BEST, (X, Y), batch_size=32, **{**COMMON, "key": jax.random.key(1)})
    assert not np.array_equal(a.loss_trace, c.loss_trace)
