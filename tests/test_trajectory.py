"""Paths over checkpoints: principal components, smoothing, osculating circles, CKA."""

import jax.numpy as jnp
import numpy as np
import pytest

from llcjax.checkpoints import CheckpointBank
from llcjax.plots import plot_path
from llcjax.trajectory import (
    osculating_circles,
    path_gram,
    path_metrics,
    principal_components,
    smoothed,
    successive_cka,
)

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(50, 3)), jnp.float32)


def bank(count=12):
    return CheckpointBank(params=RNG.normal(size=(count, 3, 4)).astype(np.float32), steps=np.arange(count))


def apply(params, x):
    return jnp.tanh(x @ params)


def test_components_are_those_of_a_direct_decomposition():
    checkpoints = bank()
    features = np.stack([np.asarray(apply(params, INPUTS)).ravel() for params in checkpoints.params])
    centred = features - features.mean(0)
    gram = path_gram(apply, checkpoints, INPUTS, batch_size=16)
    np.testing.assert_allclose(gram, centred @ centred.T, rtol=1e-4, atol=1e-3)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    found = principal_components(gram, 3)
    np.testing.assert_allclose(found.explained, (singular**2 / np.sum(singular**2))[:3], rtol=1e-4)
    np.testing.assert_allclose(np.abs(found.scores), np.abs(left[:, :3] * singular[:3]), rtol=2e-2, atol=2e-2)
    assert np.all(found.scores[-1] >= found.scores[0])


def test_smoothing_keeps_lines_in_the_middle_and_grows():
    steady = np.ones((30, 2))
    np.testing.assert_allclose(smoothed(steady), steady)
    impulse = np.zeros((40, 1))
    impulse[20] = 1
    assert smoothed(impulse)[20, 0] < smoothed(impulse, 1.0)[20, 0]
    assert smoothed(impulse, 1.0)[20, 0] == pytest.approx(1 / np.sqrt(2 * np.pi), rel=0.01)


def test_circles_of_an_ellipse_have_four_vertices():
    angle = np.linspace(0.3, 0.3 + 2 * np.pi, 401)
    found = osculating_circles(np.stack([2 * np.cos(angle), np.sin(angle)], 1))
    # Curvature of an ellipse at the ends of its long axis is a / b^2, of its short axis b / a^2.
    assert np.nanmax(found.curvature[3:-3]) == pytest.approx(2, rel=0.01)
    assert np.nanmin(found.curvature[3:-3]) == pytest.approx(0.25, rel=0.01)
    np.testing.assert_allclose(angle[found.vertices], np.pi / 2 * np.arange(1, 5), atol=0.02)


def test_cka_is_one_for_rotations_and_small_for_other_features():
    matrix = RNG.normal(size=(3, 3)).astype(np.float32)
    turned = matrix @ np.linalg.qr(RNG.normal(size=(3, 3)))[0].astype(np.float32)
    other = np.zeros((3, 3), np.float32)
    other[0, 0] = 1
    checkpoints = CheckpointBank(params=np.stack([matrix, turned, other]), steps=np.arange(3))
    values = successive_cka(lambda params, x: x @ params, checkpoints, INPUTS)
    assert np.isnan(values[0]) and values[1] == pytest.approx(1, abs=1e-4) and values[2] < 0.95


def test_path_metrics_of_a_model():
    measured = path_metrics(
        apply, lambda params, x: apply(params, x)[:, None, None], bank(), INPUTS, num_hidden_inputs=8
    )
    assert measured["output_pc"].shape == (12, 4) and measured["cka"].dims == ("checkpoint", "place")
    assert 0 < sum(measured.attrs["output_explained"]) <= 1 and set(np.unique(measured["output_vertex"])) <= {0.0, 1.0}


def test_the_path_is_drawn_in_a_plane():
    measured = path_metrics(
        apply, lambda params, x: apply(params, x)[:, None, None], bank(), INPUTS, num_hidden_inputs=8
    )
    (axes,) = plot_path(measured).axes
    assert "of the variance" in axes.get_xlabel() and len(axes.lines) == 3
    with pytest.raises(ValueError, match="one component"):
        plot_path(measured.isel(component=[0]))
