"""Singularities in normal form: the learning coefficient and its multiplicity can be read off the exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class LearningCoefficient(NamedTuple):
    """lambda and m in the volume law V(L < eps) ~ eps^lambda (-log eps)^(m - 1) (Watanabe 2009, theorem 7.1)."""

    llc: float
    """lambda, without unit."""
    multiplicity: int
    """m, the order of the pole of the zeta function at -lambda."""

    def expectation(self, n_beta: float) -> float:
        """Leading terms of n_beta * (E[L] - L(w*)) at finite n_beta: lambda - (m - 1) / log(n_beta).

        From Z(n_beta) ~ n_beta^-lambda (log n_beta)^(m - 1) and E[L] = -d log Z / d n_beta. What is left out is
        O(1 / log(n_beta)**2) for m > 1, and a power of 1 / n_beta for m = 1.

        Example:
            >>> round(LearningCoefficient(0.5, 2).expectation(1e4), 4)
            0.3914
        """
        return self.llc - (self.multiplicity - 1) / math.log(n_beta)


def crossing_llc(powers: Sequence[int]) -> LearningCoefficient:
    """Lambda = min 1 / (2 k_i) of K(w) = prod w_i^(2 k_i) at 0; m counts the i that attain it.

    Source: Watanabe 2009, "Algebraic Geometry and Statistical Learning Theory", theorem 2.4 and remark 4.2.

    Args:
        powers: the k_i, whole numbers; 0 for a flat direction.

    Raises:
        ValueError: a power is negative, or all are 0.

    Example:
        >>> crossing_llc([1, 1])
        LearningCoefficient(llc=0.5, multiplicity=2)
        >>> crossing_llc([0, 2, 1])
        LearningCoefficient(llc=0.25, multiplicity=1)
    """
    if min(powers, default=0) < 0 or max(powers, default=0) < 1:
        raise ValueError(f"powers={tuple(powers)} must be whole numbers from 0 on, at least one of them above 0.")
    return LearningCoefficient(1 / (2 * max(powers)), list(powers).count(max(powers)))


def monomial_sum_llc(powers: Sequence[int]) -> LearningCoefficient:
    """Lambda = sum 1 / p_i of K(w) = sum w_i^p_i / 2 at 0, with m = 1 (each direction scales on its own).

    At localization 0 this is no asymptotic statement: n_beta * E[K] = sum 1 / p_i at every n_beta (equipartition).

    Args:
        powers: the p_i, even and positive.

    Raises:
        ValueError: a power is odd or below 2, so that 0 would be no minimum.

    Example:
        >>> monomial_sum_llc([4, 2])
        LearningCoefficient(llc=0.75, multiplicity=1)
    """
    if not powers or any(power < 2 or power % 2 for power in powers):
        raise ValueError(f"powers={tuple(powers)} must be even numbers from 2 on, or 0 is not an isolated minimum.")
    return LearningCoefficient(sum(1 / power for power in powers), 1)
