"""Stages: fit, plateaus, boundaries with intervals, correlated errors, published procedure, bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llcjax.correlation import curve_errors, error_covariance
from llcjax.curve_csv import read_curve
from llcjax.curves import CurveFit, fit_curve
from llcjax.paper_curve import paper_curve
from llcjax.stages import Boundary, Plateau, find_stages

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "paper_regression_seed0.csv"
STEPS = np.unique(np.round(np.geomspace(1, 5e5, 60)) - 1)
X = np.log1p(STEPS)
FAST = {"num_grid": 250, "num_draws": 512}


def rise(x, place, sharpness):
    return 1 / (1 + np.exp(-sharpness * (x - place)))


def staircase(x):
    """Rise three times by 10; rests at x = 5.5 and 8.5."""
    return 10 * (rise(x, 4, 4) + rise(x, 7, 4) + rise(x, 10, 4))


def hill(x):
    return 100 * rise(x, 8, 1.5) - 30 * rise(x, 12, 3)


def noisy(curve, stderr, seed=0):
    return curve(X) + stderr * np.random.default_rng(seed).normal(size=X.size)


def find(value, stderr=None, **options):
    return find_stages(STEPS, value, stderr, **{**FAST, **options})


@pytest.mark.parametrize("measured", [True, False])
def test_a_hill_has_one_boundary_at_its_top(measured):
    fine = np.linspace(0, X[-1], 5000)
    top = np.expm1(fine[np.argmax(hill(fine))])
    covered = []
    for seed in range(6):
        stages = find(noisy(hill, 0.5, seed), np.full(X.size, 0.5) if measured else None, loss=5 - X / 10)
        (boundary,) = stages.boundaries
        assert boundary.kind == "zero_slope"
        assert boundary.lower <= boundary.step <= boundary.upper
        assert [stage.kind for stage in stages.stages] == ["A", "B"]
        assert [(stage.start, stage.end) for stage in stages.stages] == [
            (STEPS[0], boundary.step),
            (boundary.step, STEPS[-1]),
        ]
        first = stages.stages[0]
        assert abs(first.delta_value - (hill(np.log1p(top)) - hill(0.0))) < 4 * first.delta_value_stderr
        assert first.delta_loss == pytest.approx(-np.log1p(boundary.step) / 10, abs=0.01)
        covered.append(boundary.lower < top < boundary.upper)
    assert sum(covered) >= 4  # 90% intervals; over 25 seeds they cover the top 24 times


def test_the_noise_is_fitted_where_it_is_not_measured_and_may_grow_along_the_curve():
    growing = 0.02 * np.exp(X / 3)
    fit = fit_curve(STEPS, noisy(hill, growing)).fit
    assert fit.point_noise_sd[[0, -1]] == pytest.approx(growing[[0, -1]], rel=0.7)
    assert fit.noise_sd == pytest.approx(np.sqrt(np.mean(growing**2)), rel=0.4)
    inside = (fit.lower <= hill(np.log1p(fit.step))) & (hill(np.log1p(fit.step)) <= fit.upper)
    assert inside.mean() > 0.75


def test_a_staircase_has_a_boundary_on_each_rest():
    stages = find(noisy(staircase, 0.05), np.full(X.size, 0.05))
    assert len(stages.boundaries) == 2
    for boundary, rest in zip(stages.boundaries, (5.5, 8.5), strict=True):
        assert np.log1p(boundary.lower) - 0.05 < rest < np.log1p(boundary.upper) + 0.05
        assert boundary.probability >= 0.9
    assert [stage.kind for stage in stages.stages] == ["A", "A", "A"]
    assert all(plateau.probability >= 0.9 for plateau in stages.plateaus)


@pytest.mark.parametrize("measured", [True, False])
def test_more_noise_lowers_the_number_of_plateaus_and_boundaries(measured, monkeypatch):
    counts = {None: [], 2.0: []}
    for stderr in (0.05, 2.0, 6.0, 30.0):
        curves = [noisy(staircase, stderr, seed) for seed in range(6)]
        posteriors = [
            fit_curve(STEPS, curve, np.full(X.size, stderr) if measured else None, **FAST) for curve in curves
        ]
        for tolerance, rows in counts.items():
            left = iter(posteriors)  # one fit serves both tolerances
            monkeypatch.setattr("llcjax.stages.fit_curve", lambda *_, left=left, **__: next(left))
            found = [find(curve, tolerance=tolerance) for curve in curves]
            rows.append([sum(len(s.plateaus) for s in found), sum(len(s.boundaries) for s in found)])
    for rows in counts.values():
        assert np.all(np.diff(rows, axis=0) <= 0)
        assert rows[0][0] > 0
        assert rows[0][1] == 12  # two rests a curve
        assert rows[-1] == [0, 0]


def test_larger_errors_for_the_same_values_leave_less_to_be_found():
    counts = [len(find(staircase(X), np.full(X.size, stderr)).boundaries) for stderr in (0.05, 2.0, 30.0)]
    assert counts[0] == 2
    assert sorted(counts, reverse=True) == counts
    assert counts[-1] == 0


def test_a_flat_start_and_a_straight_rise_have_no_boundary():
    assert find(noisy(lambda x: 50 * rise(x, 8, 2), 0.2)).boundaries == ()
    assert find(noisy(lambda x: 3 * x, 0.3)).boundaries == ()


def test_a_constant_curve_is_one_stage_without_a_type():
    stages = find(np.full(X.size, 3.0))
    assert stages.boundaries == ()
    assert [stage.kind for stage in stages.stages] == ["-"]


def test_common_errors_make_differences_more_certain():
    error = 2.0 * np.random.default_rng(3).normal() + 0.05 * np.random.default_rng(4).normal(size=X.size)
    correlated = 2.0**2 * np.ones((X.size, X.size)) + 0.05**2 * np.eye(X.size)
    known = find(hill(X) + error, error_covariance=correlated)
    independent = find(hill(X) + error, np.full(X.size, 2.0))
    assert known.stages[0].delta_value_stderr < 0.5 * independent.stages[0].delta_value_stderr
    change = hill(np.log1p(known.stages[0].end)) - hill(0.0)
    assert abs(known.stages[0].delta_value - change) < 4 * known.stages[0].delta_value_stderr
    # ... and the level less certain: the band holds the common error.
    level = [np.median(fit.upper - fit.lower) for fit in (known.fit, independent.fit)]
    assert level[0] > 2 * level[1]


def test_error_covariance_finds_the_correlation_along_the_curve():
    rng = np.random.default_rng(0)
    near = np.exp(-np.abs(X[:, None] - X[None, :]) / 3.0)
    true = 0.8 * near + 0.2 * np.eye(X.size)
    chains = hill(X) + 2.0 * rng.multivariate_normal(np.zeros(X.size), true, size=24)
    covariance = error_covariance(STEPS, chains)
    scale = np.sqrt(np.diagonal(covariance))
    np.testing.assert_allclose(scale, chains.std(axis=0, ddof=1) / np.sqrt(24))
    assert np.linalg.eigvalsh(covariance).min() > 0
    assert np.sqrt(np.mean((covariance / np.outer(scale, scale) - true) ** 2)) < 0.15


def test_the_order_of_the_points_does_not_matter_and_results_repeat():
    value, errors = noisy(hill, 0.5), 0.5 * np.exp(X / 20)
    order = np.random.default_rng(0).permutation(X.size)
    one = find(value, error_covariance=np.diag(errors**2))
    other = find_stages(
        STEPS[order],
        value[order],
        error_covariance=np.diag(errors[order] ** 2),
        num_grid=250,
        num_draws=512,
    )
    assert one.boundaries == other.boundaries
    assert one.stages == other.stages


def test_the_published_procedure():
    value = noisy(hill, 0.5)
    stages = find_stages(STEPS, value, loss=value, method="paper")
    fit = paper_curve(STEPS, value)
    assert (fit.amplitude, fit.length_scale) == pytest.approx((np.sqrt(1e3), 0.5), rel=1e-4)
    size = np.abs(fit.slope)
    expected = [STEPS[i] for i in range(1, X.size - 1) if size[i] < min(size[i - 1], size[i + 1]) and size[i] < 8]
    assert [boundary.step for boundary in stages.boundaries] == expected
    left, right = np.diff(fit.mean[:3]) / np.diff(X[:3])
    assert fit.slope[0] == fit.slope[1] == pytest.approx((left + right) / 2)
    assert np.isnan(stages.boundaries[0].lower)
    assert {stage.kind for stage in stages.stages} <= {"A", "B", "-"}


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published curve is not beside this checkout")
def test_the_published_regression_curve():
    step, llc, stderr, loss = read_curve(PUBLISHED)
    assert stderr is None  # llc_draw_std is no standard error
    stages = find_stages(step, llc, loss=loss)
    assert any(30_000 < boundary.step < 60_000 for boundary in stages.boundaries)
    assert any(plateau.start < 40_000 < plateau.end for plateau in stages.plateaus)
    assert len(stages.boundaries) < 8
    for published in (1_000, 40_000, 126_000):
        assert any(boundary.lower < published < boundary.upper for boundary in stages.boundaries)
    top = next(boundary for boundary in stages.boundaries if 30_000 < boundary.step < 60_000)
    assert top.kind == "zero_slope"
    assert next(stage for stage in stages.stages if stage.start == top.step).kind == "B"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published curve is not beside this checkout")
def test_the_published_procedure_on_its_own_curve_ends_on_both_bounds():
    stages = find_stages(*read_curve(PUBLISHED)[:2], method="paper")
    assert (stages.fit.amplitude, stages.fit.length_scale) == pytest.approx((np.sqrt(1e3), 0.5), rel=1e-4)
    assert any(35_000 < boundary.step < 55_000 for boundary in stages.boundaries)


def test_the_table_has_a_row_a_stage():
    stages = find(noisy(hill, 0.5))
    table = stages.table()
    assert [row["name"] for row in table] == ["S1", "S2"]
    assert table[0]["end_lower"] == stages.boundaries[0].lower
    assert table[1]["end_kind"] == "end of the curve"
    assert isinstance(stages.fit, CurveFit)
    assert isinstance(stages.boundaries[0], Boundary)
    assert isinstance(stages.plateaus[0], Plateau)


def test_read_curve_takes_errors_and_loss_and_ignores_the_spread_of_draws(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("step,score,score_stderr,llc_draw_std,test_mse\n0,1,0.1,9,4\n10,2,0.2,9,3\n")
    step, value, stderr, loss = read_curve(path, "score")
    np.testing.assert_array_equal(np.stack([step, value, stderr, loss]), [[0, 10], [1, 2], [0.1, 0.2], [4, 3]])
    path.write_text("step,llc,llc_draw_std\n0,1,9\n10,2,9\n")
    assert read_curve(path)[2:] == (None, None)
    with pytest.raises(ValueError, match="no column 'score'"):
        read_curve(path, "score")
    path.write_text("step,llc\n0,one\n")
    with pytest.raises(ValueError, match="column 'llc' that is not a number"):
        read_curve(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_curve(tmp_path / "missing.csv")
    path.write_text("")
    with pytest.raises(ValueError, match="no column 'step'"):
        read_curve(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"step": [0, 1, 2, 3], "value": [0, 1, 2, 3]}, "at least 5"),
        ({"value": [0, np.nan, 2, np.inf, 4]}, "value has 2 NaN or infinite"),
        ({"value": [0, 1]}, r"value has shape \(2,\)"),
        ({"step": [0, 1, 1, 3, 4]}, "step repeats 1"),
        ({"step": [-1, 1, 2, 3, 4]}, "step contains -1"),
        ({"stderr": [1, 1, -2, 1, 1]}, "stderr contains -2"),
        ({"loss": [1, 1]}, "loss has shape"),
        ({"method": "spline"}, "method='spline'"),
        ({"tolerance": -1.0}, "tolerance=-1"),
        ({"min_width": -1.0}, "min_width=-1"),
        ({"probability": 1.5}, "probability=1.5"),
        ({"num_grid": 3}, "num_grid=3"),
        ({"error_covariance": np.eye(4)}, r"error_covariance has shape \(4, 4\)"),
        ({"error_covariance": -np.eye(5)}, "eigenvalue -1"),
        ({"error_covariance": np.eye(5), "stderr": np.ones(5)}, "both given"),
    ],
)
def test_bad_input_gets_one_sentence(change, sentence):
    good = {"step": [0, 1, 2, 3, 4], "value": [0.0, 1.0, 2.0, 3.0, 4.0]}
    with pytest.raises(ValueError, match=sentence):
        find_stages(**{**good, **change})


def test_error_covariance_wants_three_finite_chains():
    with pytest.raises(ValueError, match="at least 3 chains"):
        error_covariance(STEPS, np.ones((2, STEPS.size)))
    with pytest.raises(ValueError, match="1 NaN"):
        error_covariance([0, 1, 2], np.array([[1, 2, 3], [2, 3, 4], [np.nan, 1, 2]]))


def test_the_precision_of_the_process_is_left_alone():
    import jax.numpy as jnp

    find(noisy(hill, 0.5))
    assert jnp.ones(2).dtype == jnp.float32


def test_correlated_errors_as_a_process_give_the_fit_of_their_covariance():
    rng = np.random.default_rng(5)
    steps = np.r_[0, np.unique(np.geomspace(1, 100_000, 60).astype(int))]
    x = np.log1p(steps)
    chains = 20 * np.tanh(x - 6) + rng.normal(size=(6, 1)) + 0.3 * rng.normal(size=(6, x.size))
    errors = curve_errors(steps, chains)
    assert 0.5 < errors.share < 1
    for known in (errors, dataclasses.replace(errors, share=0.0)):
        fast = fit_curve(steps, chains.mean(0), error_covariance=known, num_grid=100)
        slow = fit_curve(steps, chains.mean(0), error_covariance=known.covariance(steps), num_grid=100)
        # L-BFGS stops within 1e-5 of the same hyperparameters.
        for name in ("mean", "lower", "upper", "slope", "slope_lower", "slope_upper", "point_noise_sd"):
            scale = np.ptp(getattr(slow.fit, name)) + np.abs(getattr(slow.fit, name)).max()
            np.testing.assert_allclose(
                getattr(fast.fit, name), getattr(slow.fit, name), atol=1e-4 * scale, err_msg=name
            )
    independent = fit_curve(steps, chains.mean(0), errors.stderr, num_grid=100)
    np.testing.assert_array_equal(fast.value_draws, independent.value_draws)
    with pytest.raises(ValueError, match=rf"of \({x.size},\) points; give \(5,\) errors"):
        fit_curve(steps[:5], chains.mean(0)[:5], error_covariance=errors)
