"""Quadratic losses: the stationary law of every linear chain, exact at any step size.

On L(w) = sum(curvature * (w - minimum)**2) / 2 a step of SGLD is a linear recursion with Gaussian noise (Mandt, Hoffman
& Blei 2017, arXiv 1704.04289, section 3, in continuous time), so its stationary mean and variance are closed forms.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_discrete_lyapunov


def sgld_variance(
    curvature: Float[np.ndarray, " direction"],
    *,
    n_beta: float,
    localization: float,
    step_size: float,
    gradient_variance: Float[np.ndarray, " direction"] | float = 0.0,
) -> Float[np.ndarray, " direction"]:
    """Stationary variance of discretised SGLD on L(w) = sum(curvature * (w - minimum)**2) / 2, around its mean.

    A step multiplies the deviation from the mean by 1 - step_size p / 2, p = n_beta * curvature + localization, and
    adds variance step_size + (step_size n_beta / 2)**2 C, where C is the variance of the minibatch gradient of L, so
    Var = (1 + step_size n_beta**2 C / 4) / (p (1 - step_size p / 4)). The continuum law 1 / p is its limit of small
    steps. Wherever the anchor is, it moves only the mean (`quadratic_llc`).

    Args:
        curvature: eigenvalues of the Hessian of L.
        n_beta: examples times inverse temperature.
        localization: gamma.
        step_size: epsilon; 0 for the continuum.
        gradient_variance: C, additive noise that does not depend on w: the variance, in each direction, of the
            gradient of the mean loss of a minibatch (of one example divided by the batch size); 0 for full batches.

    Raises:
        ValueError: the chain is unstable (step_size * p >= 4 in some direction), or has no law (p <= 0).

    Example:
        >>> sgld_variance(np.array([1.0]), n_beta=99.0, localization=1.0, step_size=0.004).round(6)
        array([0.011111])
        >>> noisy = dict(n_beta=99.0, localization=1.0, step_size=0.004, gradient_variance=0.1)
        >>> sgld_variance(np.array([1.0]), **noisy).round(6)
        array([0.022001])
    """
    precision = n_beta * np.asarray(curvature, np.float64) + localization
    if np.any(precision <= 0):
        raise ValueError(f"localization={localization:g} leaves a direction without restoring force; raise it.")
    if np.any(step_size * precision >= 4):
        raise ValueError(f"step_size={step_size:g} is unstable here; it must stay below {4 / precision.max():.3g}.")
    noise = 1 + step_size * n_beta**2 * np.asarray(gradient_variance, np.float64) / 4
    return noise / (precision * (1 - step_size * precision / 4))


def quadratic_llc(
    curvature: Float[np.ndarray, " direction"],
    *,
    n_beta: float,
    localization: float,
    step_size: float = 0.0,
    gradient_variance: Float[np.ndarray, " direction"] | float = 0.0,
    anchor: Float[np.ndarray, " direction"] | float = 0.0,
) -> float:
    """n_beta * (E[L(w)] - L(anchor)) on a quadratic.

    `step_size=0` gives the continuum, sum(n_beta h / (2 (n_beta h + localization))), which tends to half the number
    of curved directions (the LLC of a regular minimum) as n_beta grows. An anchor away from the minimum adds
    n_beta h (mean**2 - anchor**2) / 2 with mean = localization * anchor / (n_beta h + localization): the chain walks
    downhill and the LLC turns negative.

    Args:
        curvature: eigenvalues h of the Hessian of L.
        n_beta: examples times inverse temperature.
        localization: gamma.
        step_size: epsilon.
        gradient_variance: see `sgld_variance`.
        anchor: w* minus the minimum in each direction.

    Raises:
        ValueError: as `sgld_variance`.

    Example:
        >>> round(quadratic_llc(np.ones(4), n_beta=1e6, localization=1.0), 5)
        2.0
        >>> round(quadratic_llc(np.ones(4), n_beta=99.0, localization=1.0, anchor=0.5), 5)
        -47.51505
    """
    curvature, anchor = np.asarray(curvature, np.float64), np.asarray(anchor, np.float64)
    variance = sgld_variance(
        curvature, n_beta=n_beta, localization=localization, step_size=step_size, gradient_variance=gradient_variance
    )
    mean = localization * anchor / (n_beta * curvature + localization)
    return float(np.sum(n_beta * curvature * (variance + mean**2 - anchor**2) / 2))


def stationary_covariance(
    transition: Float[np.ndarray, "direction direction"], noise: Float[np.ndarray, "direction direction"]
) -> Float[np.ndarray, "direction direction"]:
    """Covariance S of the linear chain w' = transition w + N(0, noise): S = A S A^T + Q (discrete Lyapunov equation).

    It gives the exact law of any sampler with a frozen preconditioner G on a quadratic with Hessian H:
    A = I - step_size/2 G (n_beta H + localization I), Q = step_size G + (step_size n_beta / 2)**2 G C G. A sampler
    with momentum is the same with its state (w, momentum) stacked.

    Args:
        transition: A, shape `(direction, direction)`.
        noise: Q, the covariance of the noise of one step, same shape.

    Raises:
        ValueError: the chain is unstable (spectral radius of A at least 1).

    Example:
        >>> stationary_covariance(np.diag([0.8, 0.5]), 0.004 * np.eye(2)).round(6)
        array([[0.011111, 0.      ],
               [0.      , 0.005333]])
    """
    radius = float(np.max(np.abs(np.linalg.eigvals(transition))))
    if radius >= 1:
        raise ValueError(f"transition has spectral radius {radius:.6g}; it must be below 1 (take smaller steps).")
    return solve_discrete_lyapunov(np.asarray(transition, np.float64), np.asarray(noise, np.float64))


def covariance_llc(
    hessian: Float[np.ndarray, "direction direction"],
    covariance: Float[np.ndarray, "direction direction"],
    *,
    n_beta: float,
) -> float:
    """n_beta * (E[L(w)] - L(w*)) = n_beta tr(H S) / 2 for w of covariance S around the minimum w* of a quadratic.

    Example:
        >>> covariance_llc(np.eye(2), np.diag([0.011111, 0.005333]), n_beta=99.0).__round__(5)
        0.81398
    """
    return float(n_beta * np.sum(np.asarray(hessian) * np.asarray(covariance)) / 2)
