"""Observables, streamed moments, influence, kernels and susceptibilities against a linear-Gaussian model."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from llcjax import (
    SweepConfig,
    bif,
    chain_covariance,
    component_masks,
    loss_kernel,
    principal_components,
    susceptibilities,
    sweep,
)
from llcjax.checkpoints import bank_of
from llcjax.job import launch_args
from llcjax.sweep import make_job

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5]) + RNG.normal(size=40)).astype(np.float32)
ANCHOR = np.linalg.lstsq(X, Y, rcond=None)[0].astype(np.float32)
N_BETA, GAMMA = 20.0, 5.0
SIGMA = np.linalg.inv(N_BETA * X.T @ X / len(X) + GAMMA * np.eye(3))
# HMC is exact: no step size to correct for. A trajectory turns by about 2 radians, far from a period.
CONFIG = SweepConfig(
    sampler="hmc", n_beta=N_BETA, localization=GAMMA, step_size=0.0016, batch_size=None, num_chains=64, num_draws=120,
    num_burnin_steps=40,
)  # fmt: skip
PROBES = {"train": (X[:6], Y[:6]), "query": (X[6:10] * 2, Y[6:10])}


def loss(w, batch):
    return 0.5 * (batch[1] - batch[0] @ w) ** 2


def exact_covariance(a, b, sigma=SIGMA):
    """Cov(l_i, l_j) for l = (r - e)^2 / 2 with e = x.delta Gaussian: r_i r_j S_ij + S_ij^2 / 2."""
    cross = a[0] @ sigma @ b[0].T
    residuals = np.outer(a[1] - a[0] @ ANCHOR, b[1] - b[0] @ ANCHOR)
    return residuals * cross + cross**2 / 2


def within(values, error, truth):
    """Every entry within 3 standard errors, which are the jackknife over 64 independent chains of an exact sampler.

    Of a normal variable 4.6% lie beyond 2 and 0.27% beyond 3 errors. Over the seeds 0 to 19 the 69 entries of
    influences, kernels, responses of the weights and both susceptibilities did so in 5.2% and 0.43% of 1,380 cases, so
    the errors are what they say; all 69 lay within 3 at once for 17 of the 20 seeds, seed 0 among them.
    """
    z = np.abs(values - truth) / error
    assert z.max() < 3, z


@pytest.fixture(scope="module")
def stored():
    return sweep(loss, bank_of(ANCHOR), (X, Y), CONFIG, probes=PROBES, observe=lambda w: w)


def test_influence_and_kernel_have_their_closed_forms(stored):
    result = bif(stored, "train", "query").isel(checkpoint=0, setting=0)
    truth = -exact_covariance(PROBES["train"], PROBES["query"])
    within(result["bif"].values, result["bif_stderr"].values, truth)
    assert np.median(result["bif_stderr"] / np.abs(truth)) < 0.15
    kernel = loss_kernel(stored, "train").isel(checkpoint=0, setting=0)
    covariance = exact_covariance(PROBES["train"], PROBES["train"])
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    off = ~np.eye(6, dtype=bool)
    within(kernel["kernel"].values[off], kernel["kernel_stderr"].values[off], (covariance / scale)[off])
    np.testing.assert_allclose(np.diag(kernel["kernel"]), 1, rtol=1e-6)
    # Of one function of the weights: Cov(l_i, w) = -r_i Sigma x_i.
    response = bif(stored, "train", "observed").isel(checkpoint=0, setting=0)
    residual = PROBES["train"][1] - PROBES["train"][0] @ ANCHOR
    within(response["bif"].values, response["bif_stderr"].values, (residual * (SIGMA @ PROBES["train"][0].T)).T)


def test_streamed_moments_are_those_of_the_stored_draws(stored, tmp_path):
    config = dataclasses.replace(CONFIG, reduce="covariance", num_blocks=4)
    streamed = sweep(loss, bank_of(ANCHOR), (X, Y), config, probes=PROBES, observe=lambda w: w, out=tmp_path / "s")
    assert "probe_train" not in streamed and streamed["moment_scatter"].shape == (1, 1, 64, 4, 13, 13)
    for make in (lambda s: bif(s, "train", "query")["bif"], lambda s: loss_kernel(s, "query")["kernel_stderr"]):
        np.testing.assert_allclose(make(streamed), make(stored), rtol=2e-4, atol=1e-5)
    whole, blocks = chain_covariance(stored), chain_covariance(streamed)
    np.testing.assert_allclose(blocks["covariance"], whole["covariance"], rtol=1e-3, atol=1e-5)
    found = principal_components(streamed).isel(checkpoint=0, setting=0)["variance"].values
    np.testing.assert_allclose(found, np.linalg.eigvalsh(SIGMA)[::-1], rtol=0.1)
    each = principal_components(streamed, per_chain=True).isel(checkpoint=0, setting=0)
    assert each["direction"].shape == (64, 3, 3)
    total = np.trace(blocks["covariance"].values[0, 0], axis1=-2, axis2=-1)
    np.testing.assert_allclose(each["variance"].sum("component_index"), total, rtol=1e-4)
    means = sweep(loss, bank_of(ANCHOR), (X, Y), dataclasses.replace(config, reduce="mean"), probes=PROBES)
    with pytest.raises(ValueError, match="means alone"):
        bif(means, "train", "query")


def test_surplus_draws_of_the_last_block_do_not_count():
    config = SweepConfig(batch_size=None, num_draws=7, num_blocks=3, reduce="covariance", num_chains=2)
    streamed = sweep(loss, bank_of(ANCHOR), (X, Y), config, probes=PROBES)
    assert streamed["moment_count"].values.tolist() == [[[[3, 3, 1]] * 2]]


def test_memory_of_streamed_moments_does_not_grow_with_draws():
    def needed(draws, reduce):
        config = SweepConfig(
            batch_size=None, num_draws=draws, draws_per_chunk=draws, num_blocks=1, reduce=reduce, num_chains=2
        )
        big = {"many": (np.tile(X, (10, 1)), np.tile(Y, 10))}
        job = make_job(loss, bank_of(ANCHOR), (X, Y), config, probes=big)
        compiled = job.program()
        return compiled.memory_bytes(*launch_args(job, compiled, np.arange(1), 4))

    # What is left is the loss of each draw, a few numbers a chain.
    grown = needed(2000, "covariance") - needed(20, "covariance")
    assert grown < 4 * 1980 * 4 * 8
    assert needed(2000, "none") - needed(20, "none") > 4 * 1980 * 400 * 4 / 4


def test_what_is_kept_of_streamed_covariances_does_not_grow_with_draws():
    def kept(draws):
        config = SweepConfig(batch_size=None, num_draws=draws, num_blocks=5, reduce="covariance", num_chains=2)
        facts = sweep(loss, bank_of(ANCHOR), (X, Y), config, probes=PROBES)
        losses = sum(facts[name].nbytes for name in facts if "draw" in facts[name].dims)
        return facts.nbytes - losses - facts["draw"].nbytes, losses

    (few, few_losses), (many, many_losses) = kept(50), kept(500)
    assert few == many > 5 * 2 * 10 * 10 * 4  # five blocks of two chains, each a covariance of ten losses
    assert many_losses == 10 * few_losses  # a few numbers a draw: its own losses, distance and gradient


def test_susceptibilities_have_their_closed_form():
    """phi = L - L(w*), chi = -Cov(phi, l_i - L), over the entries of a component or of all parameters."""
    anchor = {"a": ANCHOR[:2], "b": ANCHOR[2:]}

    def parted(params, batch):
        return loss(jnp.concatenate([params["a"], params["b"]]), batch)

    parts = component_masks(anchor, ["a", "full"])
    probes = {"shift": (X[:6] * 1.5, Y[:6]), "data": (X, Y)}
    facts = sweep(parted, bank_of(anchor), (X, Y), CONFIG, probes=probes, components=parts)
    result = susceptibilities(facts, "shift", "data").isel(checkpoint=0)
    inner = np.zeros((3, 3))
    inner[:2, :2] = np.linalg.inv((N_BETA * X.T @ X / len(X) + GAMMA * np.eye(3))[:2, :2])
    covariances = {}
    for index, sigma in enumerate((inner, SIGMA)):
        with_data = exact_covariance(probes["data"], probes["shift"], sigma).mean(0)
        own = exact_covariance(probes["data"], probes["data"], sigma).mean()
        covariances[index] = -(with_data - own)
        one = result.isel(setting=index)
        within(one["susceptibility"].values, one["susceptibility_stderr"].values, covariances[index])
    # With `full` the expectation of the shift is that of the full posterior; E[l_i] = r_i^2/2 + S_ii/2.
    refined = susceptibilities(facts, "shift", "data", full="full").isel(checkpoint=0)
    np.testing.assert_allclose(refined["susceptibility"][1], result["susceptibility"][1], rtol=1e-2, atol=1e-3)

    def expected_shift(sigma):
        spread = [np.einsum("ij,jk,ik->i", x, sigma, x) / 2 for x, _ in (probes["shift"], probes["data"])]
        return spread[0] - spread[1].mean()

    phi = np.einsum("ij,jk,ik->i", X, inner, X).mean() / 2
    truth = covariances[0] - phi * (expected_shift(inner) - expected_shift(SIGMA))
    one = refined.isel(setting=0)
    within(one["susceptibility"].values, one["susceptibility_stderr"].values, truth)


def test_token_losses_and_bad_probes():
    def by_position(w, batch):
        return jnp.stack([loss(w, batch), 2 * loss(w, batch)], 1), jnp.ones((len(batch[1]), 2)).at[:, 1].set(0.0)

    config = SweepConfig(batch_size=None, num_draws=3, num_chains=2)
    each = sweep(by_position, bank_of(ANCHOR), (X, Y), config, probes=PROBES)
    assert each["probe_train"].shape == (1, 1, 2, 3, 6)
    tokens = sweep(by_position, bank_of(ANCHOR), (X, Y), dataclasses.replace(config, per_position=True), probes=PROBES)
    assert tokens["probe_train"].shape == (1, 1, 2, 3, 6, 2)
    np.testing.assert_allclose(tokens["probe_train"][..., 0], each["probe_train"])
    with pytest.raises(ValueError, match=r"probes\['train'\] needs one loss an example"):
        sweep(lambda w, b: loss(w, b).mean(), bank_of(ANCHOR), (X, Y), config, probes=PROBES)
    with pytest.raises(ValueError, match="nothing to reduce"):
        sweep(loss, bank_of(ANCHOR), (X, Y), dataclasses.replace(config, reduce="mean"))
    with pytest.raises(ValueError, match="recorded no 'other'; it has: query, train"):
        bif(each, "train", "other")
