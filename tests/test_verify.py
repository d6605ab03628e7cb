"""`llcjax verify`: its oracles against independent derivations, its rules on made-up rows, and a few cases for real."""

import dataclasses
import json

import numpy as np
import pytest

from llcjax import cli
from llcjax.reference import quadratic_llc
from llcjax.verify import Row, Verification
from llcjax.verify.oracles import (
    crossing_expectation,
    polynomial_expectation,
    reduced_rank_expectation,
)
from llcjax.verify.problem import settings
from llcjax.verify.run import SUITES, solve, suite_problems, verify


def row(**changes):
    known = dict(
        group="quadratic", case="made up", sampler="sgld", llc=1.0, posterior=0.99, expected=1.0, estimate=1.01,
        stderr=0.01, num_chains=32, tolerance=None, verdict="ok", peers="", note="", seconds=0.1,
    )  # fmt: skip
    return Row(**{**known, **changes})


def of(*rows):
    return Verification(suite="quick", rows=rows, seconds=1.0)


@pytest.fixture(scope="module")
def quick():
    return {f"{problem.group} {problem.name}": problem for problem in suite_problems("quick")}


# Oracles


@pytest.mark.parametrize("step_size", [4e-4, 4e-3, 1.5e-2])
def test_chain_on_a_parabola_is_the_closed_form(step_size):
    config = settings("sgld", n_beta=200.0, localization=2.0, step_size=step_size, num_draws=300,
                      num_burnin_steps=int(30 / step_size / 200), num_steps_between_draws=3)  # fmt: skip
    found = polynomial_expectation([[0.3, 0.0, 0.5], [0.0, 0.0, 0.2]], [0.0, 0.0], config)
    known = {"n_beta": 200.0, "localization": 2.0}
    assert found.posterior == pytest.approx(quadratic_llc(np.array([1.0, 0.4]), **known), rel=1e-8)
    assert found.chain == pytest.approx(quadratic_llc(np.array([1.0, 0.4]), **known, step_size=step_size), rel=1e-4)


@pytest.mark.parametrize(("burnin", "between", "draws"), [(0, 1, 7), (0, 4, 5), (5, 2, 6)])
def test_chain_expectation_holds_burn_in_and_thinning(burnin, between, draws):
    """Against 200,000 simulated chains on a skew quartic, far from their stationary law; z below 4."""
    terms, anchor, n_beta, localization, step_size = np.array([0.0, 0.1, 0.3, 0.5, 1.0]), 0.4, 20.0, 3.0, 0.01
    config = settings("sgld", n_beta=n_beta, localization=localization, step_size=step_size, num_burnin_steps=burnin,
                      num_steps_between_draws=between, num_draws=draws)  # fmt: skip
    exact = polynomial_expectation([terms], [anchor], config).chain
    rng, loss = np.random.default_rng(0), np.polynomial.Polynomial(terms)
    w, total = np.full(200_000, anchor), np.zeros(200_000)
    first = -(-burnin // between) * between
    for step in range(first + (draws - 1) * between + 1):
        if step >= first and (step - first) % between == 0:
            total += n_beta * (loss(w) - loss(anchor)) / draws
        force = n_beta * loss.deriv()(w) + localization * (w - anchor)
        w = w - step_size / 2 * force + np.sqrt(step_size) * rng.normal(size=w.size)
    assert abs(total.mean() - exact) < 4 * total.std() / np.sqrt(total.size)


def exact_crossing(powers, setting):
    """n_beta E[L] of SGLD in two dimensions: the law of the chain on a grid, iterated until it stands."""
    spread = np.sqrt(setting.step_size)
    axis = np.arange(-3.6, 3.6, spread / 2.5)
    x, y = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    p, q = 2 * np.array(powers)
    slopes = (p * x ** (p - 1) * y**q, q * x**p * y ** (q - 1))
    forces = (setting.n_beta * slope + setting.localization * w for slope, w in zip(slopes, (x, y), strict=True))
    means = [w - setting.step_size / 2 * force for force, w in zip(forces, (x, y), strict=True)]
    to_x, to_y = (np.exp(-(((axis - mean[:, None]) / spread) ** 2) / 2) for mean in means)
    law = np.exp(-setting.localization / 2 * (x**2 + y**2))
    for _ in range(int(12 / setting.step_size / setting.localization)):
        law = ((law[:, None] * to_x).T @ to_y).ravel()
        law /= law.sum()
    return setting.n_beta * np.sum(law * x**p * y**q)


@pytest.mark.parametrize("powers", [(1, 1), (1, 2)])
def test_stated_bias_of_a_crossing_is_right_to_first_order(powers):
    """What is left after it shrinks with the square of the step."""
    left = []
    for step_size in (0.1, 0.05):
        config = settings("sgld", n_beta=2.0, localization=4.0, step_size=step_size)
        stated = crossing_expectation(powers, 1.0, config)
        exact = exact_crossing(powers, config.settings[0])
        left.append((exact - stated.chain) / (exact - stated.posterior))
    assert abs(left[1]) < 0.25 and left[1] / left[0] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("widths", [(3, 1, 2), (5, 2, 4)])
def test_reduced_rank_integral_is_an_average_over_random_matrices(widths):
    inputs, hidden, outputs = widths
    config = settings("hmc", n_beta=3.0, localization=10.0)
    matrix = np.random.default_rng(0).normal(size=(400_000, hidden, inputs))
    eigenvalues = 3.0 * 10 / 100 * np.linalg.eigvalsh(matrix @ matrix.transpose(0, 2, 1))
    weight = np.prod(1 + eigenvalues, 1) ** (-outputs / 2)
    value = np.sum(outputs / 2 * eigenvalues / (1 + eigenvalues), 1)
    mean = np.average(value, weights=weight)
    error = np.sqrt(np.sum((weight * (value - mean)) ** 2)) / weight.sum()
    assert abs(reduced_rank_expectation(widths, 10.0, config).posterior - mean) < 4 * error < 0.02


# Rules


def test_z_is_a_normal_score_that_allows_for_few_chains():
    assert row(estimate=1.02, num_chains=100_000).z == pytest.approx(2.0, abs=1e-3)
    assert row(estimate=0.98, num_chains=100_000).z == pytest.approx(-2.0, abs=1e-3)
    # P(|t| > 3.182) = 0.05 with 3 degrees of freedom.
    assert row(estimate=1.03182, num_chains=4).z == pytest.approx(1.96, abs=1e-3)
    assert row(expected=None).z is None
    assert not row(stderr=0.0).passed and not row(estimate=float("nan"), stderr=float("nan")).passed


def test_rows_that_pass_and_fail():
    assert row().passed and not row(estimate=1.06).passed
    assert row(expected=None, posterior=None, tolerance=0.1, estimate=0.91).passed
    assert row(expected=None, posterior=None, tolerance=0.1, estimate=0.89).passed is False
    assert row(expected=None, posterior=None).passed is None
    # Near lambda where posterior and bias are, if the error can tell.
    near = dict(posterior=0.96, expected=0.96, stderr=0.022, num_chains=10_000)
    assert row(**near, estimate=0.91).passed and row(**near, estimate=0.89).passed is False
    assert row(**{**near, "stderr": 0.04}, estimate=0.89).passed
    far = row(posterior=0.5, expected=0.5, estimate=0.5)
    assert far.passed and not far.claims_llc
    # Without lambda (an anchor that is no minimum) only z counts.
    assert row(llc=None, posterior=-2.0, expected=-2.0, estimate=-2.01).passed


def test_too_many_rows_beyond_two_fail_the_suite():
    beyond = [row(estimate=1.025)] * 3
    good = [row()] * 57
    assert of(*good, *beyond).passed and of(*good, *beyond).num_beyond_two == 3
    limit = of(*good, *beyond).most_beyond_two
    assert 6 <= limit <= 10
    many = of(*good[limit:], *[row(estimate=1.025)] * (limit + 1))
    assert not many.passed and "too many rows" in many.summary()[-1]
    assert all(one.passed for one in many.rows)
    assert of(row(expected=None, posterior=None)).passed and not of(row(), row(estimate=1.1)).passed
    assert "made up (sgld)" in of(row(), row(estimate=1.1)).summary()[-1]


# The command line


def test_exit_codes_table_and_json(monkeypatch, capsys, tmp_path):
    shown = row(expected=None, posterior=None, peers="0.468 ± 0.153", note="improper at localization 0")
    monkeypatch.setattr(cli.tools, "verify", lambda suite, report: of(row(), shown, row(case="bad", estimate=1.2)))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--out", str(tmp_path / "new" / "rows.json")])
    assert stopped.value.code == 1
    text = capsys.readouterr().out
    assert "FAIL" in text and "0.468 ± 0.153" in text and "1 of 2 rows passed, 1 are only shown" in text
    facts = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert facts["passed"] is False and facts["provenance"]["jax"] and len(facts["rows"]) == 3
    assert facts["rows"][2]["z"] > 4 and facts["rows"][1]["z"] is None
    monkeypatch.setattr(cli.tools, "verify", lambda suite, report: of(row()))
    cli.main(["verify", "--suite", "quick"])
    assert "passed in 1 s" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--suite", "nonsense"], ["--out", "."]])
def test_bad_input_is_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", *arguments])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and ("nonsense" in lines[0] or "folder" in lines[0])


def test_unknown_group_is_refused():
    with pytest.raises(ValueError, match="group='cubic' is unknown; choose one of quadratic, quadrature"):
        verify("quick", groups=("cubic",))


# Cases


def test_suites_hold_every_group_and_enough_exact_rows(quick):
    answers = [(problem, answer) for problem in quick.values() for answer in problem.answers]
    groups = {problem.group for problem, _ in answers}
    assert groups == {"quadratic", "quadrature", "crossing", "monomial", "reduced rank", "deep linear"}
    for sampler in ("sgld", "mala", "hmc"):
        exact = [one for problem, one in answers if problem.config.sampler == sampler and one.expectation is not None]
        assert len(exact) >= 20
    # Every row of the peers is there, and no row is without a judgement but the improper ones.
    assert sum(bool(answer.peers) for _, answer in answers) == 14
    unjudged = [one for _, one in answers if one.expectation is None and one.tolerance is None]
    assert len(unjudged) == 6 and all("improper" in one.note for one in unjudged)
    # Seeds come from the names.
    assert len(quick) == len(suite_problems("quick")) and SUITES == ("quick", "full", "gpu")


NAMES = ["quadratic masked", "quadratic minibatches", "monomial as the peers 2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_few_problems_for_real(quick, name):
    for found in solve(quick[name]):
        assert found.passed and found.verdict in ("ok", "stuck", "biased") and found.z is not None
        assert found.stderr < 0.1 * found.llc


def test_a_sampler_that_is_wrong_is_found(quick):
    """Twice the step that the expectation was told of: 14% more variance."""
    problem = quick["quadratic masked"]
    wrong = dataclasses.replace(problem, config=dataclasses.replace(problem.config, step_size=(8e-3,)))
    (found,) = solve(wrong)
    assert found.passed is False and found.z > 6


@pytest.mark.slow
def test_quick_suite_passes():
    assert verify("quick").passed
