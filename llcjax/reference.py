"""Known answers: closed forms that samplers and estimators must reproduce."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def sgld_variance(
    curvature: Float[np.ndarray, " direction"], *, n_beta: float, localization: float, step_size: float
) -> Float[np.ndarray, " direction"]:
    """Stationary variance of discretised full-batch SGLD on L(w) = sum(curvature * w**2) / 2, anchored at 0.

    A step multiplies w by 1 - step_size p / 2, p = n_beta * curvature + localization, and adds variance step_size,
    so Var = 1 / (p (1 - step_size p / 4)); the continuum law 1 / p is its limit of small steps.

    Args:
        curvature: eigenvalues of the Hessian of L.
        n_beta: examples times inverse temperature.
        localization: gamma.
        step_size: epsilon.

    Raises:
        ValueError: the chain is unstable (step_size * p >= 4 in some direction).

    Example:
        >>> sgld_variance(np.array([1.0]), n_beta=99.0, localization=1.0, step_size=0.004).round(6)
        array([0.011111])
    """
    precision = n_beta * np.asarray(curvature, np.float64) + localization
    if np.any(step_size * precision >= 4):
        raise ValueError(f"step_size={step_size:g} is unstable here; it must stay below {4 / precision.max():.3g}.")
    return 1 / (precision * (1 - step_size * precision / 4))


def quadratic_llc(
    curvature: Float[np.ndarray, " direction"], *, n_beta: float, localization: float, step_size: float = 0.0
) -> float:
    """n_beta * (E[L(w)] - L(w*)) on a quadratic with its minimum at the anchor.

    `step_size=0` gives the continuum, sum(n_beta h / (2 (n_beta h + localization))), which tends to half the number
    of curved directions (the LLC of a regular minimum) as n_beta grows.

    Example:
        >>> round(quadratic_llc(np.ones(4), n_beta=1e6, localization=1.0), 5)
        2.0
    """
    curvature = np.asarray(curvature, np.float64)
    variance = sgld_variance(curvature, n_beta=n_beta, localization=localization, step_size=step_size)
    return float(np.sum(n_beta * curvature * variance / 2))
