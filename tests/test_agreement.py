"""Boundaries of several curves beside a reference."""

import numpy as np
import pytest

from llcjax.agreement import boundary_agreement, curves_stages

STEPS = np.unique(np.geomspace(1, 1e5, 60).astype(int))
X = np.log1p(STEPS)


def bump(turn):
    """A curve that rises to `turn` and falls after it."""
    return -((X - np.log1p(turn)) ** 2)


@pytest.fixture(scope="module")
def found():
    noise = np.random.default_rng(0).normal(size=STEPS.size)
    errors = np.full(STEPS.size, 0.05)
    return curves_stages({
        "same": (STEPS, bump(1000) + 0.05 * noise, errors),
        "late": (STEPS, bump(20_000) + 0.05 * noise, None),
        "short": (STEPS[:3], X[:3], None),
        "gap": (np.append(STEPS, 10**6), np.append(bump(1000), np.nan), None),
    })  # fmt: skip


def test_the_same_turn_agrees_and_a_late_one_does_not(found):
    rows = {row["curve"]: row for row in boundary_agreement(found, [1000.0])}
    assert rows["same"]["agrees"] == "yes" and rows["same"]["lower"] < 1100 and rows["same"]["upper"] > 900
    assert rows["late"]["agrees"] == "no" and rows["late"]["distance"] == pytest.approx(np.log(20), abs=0.3)
    assert rows["gap"]["agrees"] == "yes"
    assert 0 < rows["same"]["chance"] < 0.3 and rows["same"]["num_boundaries"] == 1


def test_a_curve_without_stages_says_why_and_agrees_with_nothing(found):
    assert "at least 5" in found["short"]
    (row,) = boundary_agreement({"short": found["short"]}, [1000.0])
    assert row["agrees"] == "no" and row["step"] == "" and row["chance"] == 0


def test_one_boundary_stands_for_one_place_alone(found):
    near, far = boundary_agreement({"same": found["same"]}, [1000.0, 1300.0])
    assert near["agrees"] == "yes" and far["agrees"] == "no"


def test_boundaries_of_another_curve_are_a_reference_with_intervals(found):
    (row,) = boundary_agreement({"gap": found["gap"]}, found["same"].boundaries)
    assert row["reference_lower"] < row["reference"] < row["reference_upper"] and row["agrees"] == "yes"
