"""Exact expectations of the estimates that a chain makes, the discretisation of its steps included.

`llcjax.reference` has the local posterior itself; here is what chains of finite steps and finite length average to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from numpy.polynomial import polynomial

from llcjax.config import Setting, SweepConfig
from llcjax.reference import quadrature_llc

# exp(-_REACH) is what counts as nothing; a chain's grid has _POINTS points a standard deviation of its noise.
_REACH, _POINTS = 60.0, 4


class Expectation(NamedTuple):
    """What an estimate converges to as chains are added."""

    posterior: float
    """n_beta * (E[L(w)] - L(w*)) under the local posterior."""
    chain: float
    """The same under the law of the chain: what its step size adds and, where stated, what its burn-in leaves."""


def exact(posterior: float) -> Expectation:
    """Of a sampler without bias (MALA, HMC)."""
    return Expectation(posterior, posterior)


def polynomial_expectation(
    coefficients: Sequence[npt.ArrayLike], anchor: Sequence[float], config: SweepConfig
) -> Expectation:
    """Of L(w) = sum over i of a polynomial in w_i: the coordinates are independent integrals and independent chains.

    Args:
        coefficients: of each coordinate, from the constant upwards.
        anchor: w*.
        config: one setting, full batch; SGLD (exact to the last draw), or a sampler without bias.
    """
    setting = config.settings[0]
    posterior = chain = 0.0
    for terms, start in zip(map(np.asarray, coefficients), anchor, strict=True):
        if not np.any(terms[1:]):
            continue  # a coordinate that the loss does not see
        one = quadrature_llc(
            lambda w, terms=terms: polynomial.polyval(w[:, 0], terms),
            np.array([start]),
            n_beta=setting.n_beta,
            localization=setting.localization,
        )
        posterior += one
        chain += _sgld_chain_llc(terms, start, config) if config.sampler == "sgld" else one
    return Expectation(posterior, chain)


def _sgld_chain_llc(coefficients: Float[np.ndarray, " power"], anchor: float, config: SweepConfig) -> float:
    """Expectation of the estimate of an SGLD chain on a polynomial in one dimension that starts at the anchor.

    A step takes w to N(w - step_size/2 U'(w), step_size). On a grid of several points a standard deviation the
    trapezoidal rule is exact to rounding and a step is a matrix P; with Q = P^(steps between draws), the sum over t of
    Q^t applied to the excess loss is the expected sum of a chain's draws from every start.
    """
    setting, between = config.settings[0], config.num_steps_between_draws
    grid = _grid(coefficients, anchor, setting)
    middle = len(grid) // 2  # the anchor
    excess = polynomial.polyval(grid, coefficients) - polynomial.polyval(anchor, coefficients)
    force = setting.n_beta * polynomial.polyval(grid, polynomial.polyder(coefficients))
    mean = grid - setting.step_size / 2 * (force + setting.localization * (grid - anchor))
    noise = (grid - mean[:, None]) / np.sqrt(setting.step_size)
    step = np.exp(-(noise**2) / 2) / (_POINTS * np.sqrt(2 * np.pi))
    draw = np.linalg.matrix_power(step, between)
    before = np.linalg.matrix_power(draw, -(-config.num_burnin_steps // between))[middle]
    return float(setting.n_beta * before @ _geometric_sum(draw, excess, config.num_draws) / config.num_draws)


def _grid(coefficients: Float[np.ndarray, " power"], anchor: float, setting: Setting) -> Float[np.ndarray, " point"]:
    """Points around the anchor, out to where the density of the posterior is nothing on both sides."""

    def rise(radius: float) -> float:
        ends = polynomial.polyval(anchor + radius * np.array([-1.0, 1.0]), coefficients)
        level = polynomial.polyval(anchor, coefficients)
        return setting.n_beta * float(ends.min() - level) + setting.localization * radius**2 / 2

    radius = 0.01
    while rise(radius) < _REACH:
        radius *= 1.1
    step = np.sqrt(setting.step_size) / _POINTS
    count = int(np.ceil(radius / step))
    return anchor + step * np.arange(-count, count + 1)


def _geometric_sum(
    matrix: Float[np.ndarray, "point point"], vector: Float[np.ndarray, " point"], count: int
) -> Float[np.ndarray, " point"]:
    """(1 + Q + ... + Q^(count - 1)) v, from the binary digits of count: sums double as powers square."""
    total, power = np.zeros_like(vector), np.eye(len(vector))
    for digit in bin(count)[2:]:
        total, power = total + power @ total, power @ power
        if digit == "1":
            total, power = vector + matrix @ total, matrix @ power
    return total


def crossing_expectation(powers: tuple[int, int], scale: float, config: SweepConfig) -> Expectation:
    """Of L(w) = scale * w_1^(2 p) w_2^(2 q) at 0, with the bias of SGLD to first order in the step size.

    The stationary density of discretised SGLD is exp(-U) (1 + step_size/2 * (|grad U|^2 / 4 - tr hess U / 2 - mean))
    up to step_size^2 (expand the generator of a step; on a quadratic it is the first term of `sgld_variance`). The
    bias is thus a covariance under the posterior, here on a grid graded towards the axes, where the ridges are.

    Args:
        powers: p and q.
        scale: of the loss.
        config: one setting with localization above 0, burnt in.
    """
    setting = config.settings[0]
    if 0 in powers:
        terms = [[0.0] * (2 * power) + [scale] if power else [0.0, 0.0] for power in powers]
        return polynomial_expectation(terms, (0.0, 0.0), config)
    exponents = 2 * np.array(powers)
    posterior = quadrature_llc(
        lambda w: scale * np.prod(w**exponents, 1),
        np.zeros(2),
        n_beta=setting.n_beta,
        localization=setting.localization,
        rtol=1e-6,
    )
    bias = _first_order_bias(powers, scale, setting) if config.sampler == "sgld" else 0.0
    return Expectation(posterior, posterior + bias)


def _first_order_bias(powers: tuple[int, int], scale: float, setting: Setting) -> float:
    """n_beta * step_size/2 * Cov(L, |grad U|^2 / 4 - tr hess U / 2)."""
    narrow, wide, count = 1e-3, np.sqrt(2 * _REACH / setting.localization), 300
    even = (np.arange(count) + 0.5) / count * np.arcsinh(wide / narrow)  # one quadrant stands for all four
    x, y = np.meshgrid(narrow * np.sinh(even), narrow * np.sinh(even), indexing="ij")
    area = np.cosh(even)[:, None] * np.cosh(even)
    p, q = 2 * np.array(powers)
    loss, strength = scale * x**p * y**q, setting.n_beta * scale
    slope_x = strength * p * x ** (p - 1) * y**q + setting.localization * x
    slope_y = strength * q * x**p * y ** (q - 1) + setting.localization * y
    curvature = strength * (p * (p - 1) * x ** (p - 2) * y**q + q * (q - 1) * x**p * y ** (q - 2))
    weight = area * np.exp(-setting.n_beta * loss - setting.localization / 2 * (x**2 + y**2))
    tilt = (slope_x**2 + slope_y**2) / 4 - curvature / 2
    mean_loss, mean_tilt = np.average(loss, weights=weight), np.average(tilt, weights=weight)
    covariance = np.average((loss - mean_loss) * (tilt - mean_tilt), weights=weight)
    return float(setting.n_beta * setting.step_size / 2 * covariance)


def reduced_rank_expectation(widths: tuple[int, int, int], curvature: float, config: SweepConfig) -> Expectation:
    """Of L = curvature/2 |W_1 W_2|^2 at W = 0, for one or two hidden units, under the local posterior.

    W_2 integrates out and leaves the eigenvalues of localization * W_1^T W_1, which are those of a Wishart matrix: a
    factor (1 + c s)^(-outputs/2), c = n_beta * curvature / localization^2, for each eigenvalue s.

    Args:
        widths: inputs, hidden (1 or 2), outputs.
        curvature: variance of the inputs.
        config: one setting with localization above 0, and a sampler without bias.
    """
    setting, (inputs, hidden, outputs) = config.settings[0], widths
    log_s = np.linspace(-30.0, 6.0, 1501)
    s = np.exp(log_s)
    resolved = setting.n_beta * curvature / setting.localization**2 * s
    density = s ** ((inputs - hidden + 1) / 2) * np.exp(-s / 2) * (1 + resolved) ** (-outputs / 2)
    each = outputs / 2 * resolved / (1 + resolved)
    if hidden == 2:
        gap = np.abs(s - s[:, None])
        pair = density * density[:, None] * gap
        posterior = float(np.average(each + each[:, None], weights=pair))
    else:
        posterior = float(np.average(each, weights=density))
    return exact(posterior)
