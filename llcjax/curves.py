"""Gaussian-process fits of noisy curves over log(step + 1), with the posterior of the curve and of its slope.

A curve along training is measured with error at some checkpoints; what is known about it at and between them
is a set of posterior draws on a fine grid, off which `llcjax.stages` reads all that it reports. The fit runs in
float64 inside `jax.enable_x64(True)`; the rest of the process keeps its precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy.optimize import minimize

from llcjax import checks
from llcjax.correlation import CurveErrors, measured_errors
from llcjax.curve_process import objective, predict_all

BAND = 0.90  # probability inside every band and interval of this module and of llcjax.stages
_NORMAL_95 = 1.6448536269514722  # a 90% band is the mean -+ this many standard deviations
LARGEST = 1e100
_NUM_HYPER = 16  # hyperparameter draws; the curve draws are shared out between them
_DIFFERENCE = 1e-4  # of hyperparameters, between the gradients that give the Hessian


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveFit:
    """A fitted curve and its slope with 90% bands, on a grid of steps.

    Attributes:
        step: (G,) grid of training steps, even in log(step + 1), not whole numbers.
        mean: (G,) posterior mean of the curve, in the unit of the values.
        lower: (G,) lower edge of the 90% band of the noise-free curve.
        upper: (G,) upper edge of it.
        slope: (G,) posterior mean of d value / d log(step + 1), in values per e-fold of step + 1.
        slope_lower: (G,) lower edge of the 90% band of the slope.
        slope_upper: (G,) upper edge of it.
        amplitude: Prior standard deviation of the curve, in the unit of the values.
        length_scale: Length scale of the kernel, in units of log(step + time_scale).
        noise_sd: Root mean square over the points of the noise the fit used (measured plus fitted).
        time_scale: Steps below which training counts as linear in steps and not in their logarithm.
        point_noise_sd: (C,) noise standard deviation of each measured point.
    """

    step: np.ndarray
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    slope: np.ndarray
    slope_lower: np.ndarray
    slope_upper: np.ndarray
    amplitude: float
    length_scale: float
    noise_sd: float
    time_scale: float
    point_noise_sd: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePosterior:
    """Posterior draws of a curve and of its slope.

    Attributes:
        fit: Summary with bands.
        x: (G,) log(step + 1) of the grid.
        value_draws: (draw, G) curves drawn from the posterior.
        slope_draws: (draw, G) their slopes.
        slope_means: (H, G) posterior mean slope under each hyperparameter draw.
        slope_sds: (H, G) posterior standard deviation of the slope under each hyperparameter draw.
    """

    fit: CurveFit
    x: np.ndarray
    value_draws: np.ndarray
    slope_draws: np.ndarray
    slope_means: np.ndarray
    slope_sds: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """A standardised curve; priors of (log amplitude, log length, log time scale, log noise, noise trend)."""

    data: dict[str, np.ndarray]
    prior_mean: np.ndarray
    prior_sd: np.ndarray
    bounds: np.ndarray
    offset: float
    scale: float


def check_curve(
    step: Any, value: Any, stderr: Any = None, loss: Any = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Check a curve and sort it by step.

    Args:
        step: (C,) training steps, at least 5, without duplicates, any order.
        value: (C,) values.
        stderr: (C,) standard errors or None.
        loss: (C,) losses or None.

    Returns:
        step, value, stderr, loss as sorted float64 arrays, and the (C,) order that sorted them.

    Raises:
        ValueError: If the arrays do not make a curve; the sentence names the argument.
    """
    given = {"step": step, "value": value, "stderr": stderr, "loss": loss}
    needed = ("step", "value")
    arrays = {name: checks.reals(name, array) for name, array in given.items() if array is not None or name in needed}
    steps = arrays["step"]
    if steps.ndim != 1 or steps.size < 5:
        raise ValueError(f"step has shape {steps.shape}; give one dimension, at least 5 checkpoints.")
    for name, array in arrays.items():
        if array.shape != steps.shape:
            raise ValueError(f"{name} has shape {array.shape} and step {steps.shape}; give one a step.")
        if bad := int(np.sum(~np.isfinite(array))):
            raise ValueError(f"{name} has {bad} NaN or infinite entries; remove those checkpoints first.")
    for name, array in arrays.items():
        if not np.abs(array).max() <= LARGEST:  # squares are taken
            raise ValueError(
                f"{name} holds {np.abs(array).max():.3g}; give it in a unit with values below {LARGEST:g}."
            )
    if steps.min() < 0:
        raise ValueError(f"step contains {steps.min():g}; training steps must be 0 or larger.")
    order = np.argsort(steps, kind="stable")
    if repeats := int(np.sum(np.diff(steps[order]) == 0)):
        raise ValueError(f"step repeats {repeats} of its entries; average or remove the duplicates.")
    if "stderr" in arrays and arrays["stderr"].min() < 0:
        raise ValueError(f"stderr contains {arrays['stderr'].min():g}; standard errors must be 0 or larger.")
    ordered = {name: array[order] for name, array in arrays.items()}
    return ordered["step"], ordered["value"], ordered.get("stderr"), ordered.get("loss"), order


def _problem(step: np.ndarray, value: np.ndarray, error: CurveErrors | np.ndarray | None) -> _Problem:
    """Standardise the values and set the priors; without measured errors noise and trend are fitted."""
    x = np.log1p(step)
    width = x[-1] - x[0]
    offset, scale = float(value.mean()), float(value.std()) or 1.0
    measured = error is not None
    # Amplitude and length priors are wide but proper: where noise drowns the curve the posterior falls back
    # on them, the slope stays uncertain, and no plateau is claimed.
    prior_mean = np.array([0.0, np.log(width / 10), np.log(10.0), np.log(0.005 if measured else 0.02), 0.0])
    prior_sd = np.array([1.0, 1.0, 3.0, 1.5 if measured else 2.0, 2.0])
    trend = 0.0 if measured else 6.0
    shortest = np.log(min(np.median(np.diff(x)), width / 10))
    bounds = np.array(
        [(-4, 4), (shortest, np.log(4 * width)), (0, np.log1p(step[-1])), (np.log(1e-6), 1), (-trend, trend)]
    )
    data = {
        "step": step,
        "value": (value - offset) / scale,
        "position": (x - x.mean()) / (width / 2),
    }
    if isinstance(error, np.ndarray):
        data["error"] = error / scale**2
    else:
        known = error or CurveErrors(stderr=np.zeros(x.size))
        data |= {"stderr": known.stderr / scale, "share": np.array(known.share), "length": np.array(known.length)}
    return _Problem(data=data, prior_mean=prior_mean, prior_sd=prior_sd, bounds=bounds, offset=offset, scale=scale)


def minimize_from(
    objective: Callable[[np.ndarray], tuple[Any, Any]], starts: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Return the best end of L-BFGS-B from several starts; a failed factorisation counts as unlikely."""

    def guarded(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(theta)
        if np.isfinite(value) and np.all(np.isfinite(gradient)):
            return float(value), np.asarray(gradient)
        return 1e10, np.zeros_like(theta)

    starts = np.clip(starts, bounds[:, 0], bounds[:, 1])
    ends = [minimize(guarded, start, jac=True, bounds=bounds, method="L-BFGS-B") for start in starts]
    return min(ends, key=lambda end: end.fun).x


def _hyperparameters(problem: _Problem, rng: np.random.Generator) -> np.ndarray:
    """Return (H, 5) hyperparameters: the most probable, then draws of the Laplace approximation there."""
    arguments = (problem.data, problem.prior_mean, problem.prior_sd)
    width = np.log(10) + problem.prior_mean[1]
    starts = np.stack([problem.prior_mean] * 4)
    starts[:, 1] = [width - 3.5, width - 2, width - 3.5, width - 2]
    starts[:, 2] = np.log([1.0, 100.0, 1000.0, 100.0])
    starts[:, 3] = np.log([0.003, 0.003, 0.1, 0.1])
    best = minimize_from(lambda theta: objective(theta, *arguments), starts, problem.bounds)
    # Differences of gradients: the Hessian as a program of its own takes longer to compile than all of the fit.
    moves = _DIFFERENCE * np.eye(best.size)
    above, below = (np.stack([objective(theta, *arguments)[1] for theta in best + sign * moves]) for sign in (1, -1))
    hessian = (above - below) / (2 * _DIFFERENCE)
    curvature, axes = np.linalg.eigh((hessian + hessian.T) / 2)
    # The prior bounds the width from above, also where the best point lies on a bound or the Hessian is not
    # positive.
    widths = 1 / np.sqrt(np.maximum(curvature, 1 / problem.prior_sd.max() ** 2))
    # The symmetric root of the covariance, because the signs of eigenvectors are those of chance.
    draws = best + rng.standard_normal((_NUM_HYPER - 1, best.size)) @ (axes * widths) @ axes.T
    return np.vstack([best, np.clip(draws, problem.bounds[:, 0], problem.bounds[:, 1])])


def fit_curve(
    step: Any,
    value: Any,
    stderr: Any = None,
    *,
    error_covariance: Any = None,
    num_grid: int = 500,
    num_draws: int = 1024,
    seed: int = 0,
) -> CurvePosterior:
    """Fit a Gaussian process to a curve over log(step + 1).

    Kernel: Matern 5/2 over log(step + time_scale) with a free level. Noise: the measured errors plus a small
    fitted jitter; without measured errors, a fitted standard deviation whose logarithm is linear in
    log(step + 1). The five hyperparameters are found by L-BFGS from four starts; their uncertainty enters
    through 16 draws of the Laplace approximation. Cost: linear in the number of checkpoints C (see
    `llcjax.curve_process`), cubic where the errors come as a matrix.

    Args:
        step: (C,) training steps, C >= 5.
        value: (C,) values, any unit.
        stderr: (C,) one standard error each, errors independent; None fits the noise.
        error_covariance: what `llcjax.correlation.curve_errors` returns, or a (C, C) covariance, where the errors are
            correlated along the curve; instead of `stderr`.
        num_grid: Number of grid points G.
        num_draws: Number of posterior draws, about.
        seed: Seed of the draws.

    Returns:
        The posterior on the grid.

    Raises:
        ValueError: If the input is not a curve.
    """
    steps, values, errors, _, order = check_curve(step, value, stderr)
    problem = _problem(steps, values, measured_errors(errors, error_covariance, order))
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((_NUM_HYPER, max(num_draws // _NUM_HYPER, 8), num_grid))
    x = np.linspace(np.log1p(steps[0]), np.log1p(steps[-1]), num_grid)
    with jax.enable_x64(True):
        thetas = _hyperparameters(problem, rng)
        parts = [np.asarray(part) for part in predict_all(thetas, problem.data, x, normals)]
    whole = np.all(np.isfinite(parts[4]), axis=(1, 2))  # extreme draws may fail to factorise
    if not whole.any():
        raise ValueError("value could not be fitted in float64; check the errors, some may be far too small.")
    return _posterior(problem, thetas[0], x, [part[whole] for part in parts])


def _posterior(problem: _Problem, best: np.ndarray, x: np.ndarray, parts: list[np.ndarray]) -> CurvePosterior:
    """Put the hyperparameter draws together, back in the unit of the values."""
    scale, steps = problem.scale, problem.data["step"]
    means, sds, slopes, slope_sds, values, slope_values = (part * scale for part in parts)
    mean, sd = _mixture(means + problem.offset, sds)
    slope, slope_sd = _mixture(slopes, slope_sds)
    fitted = np.exp(2 * (best[3] + best[4] * problem.data["position"]))
    known = np.diagonal(problem.data["error"]) if "error" in problem.data else problem.data["stderr"] ** 2
    point_noise = scale * np.sqrt(known + fitted)
    grid = np.concatenate([steps[:1], np.expm1(x[1:-1]), steps[-1:]])  # the ends without rounding errors
    fit = CurveFit(
        step=grid,
        mean=mean,
        lower=mean - _NORMAL_95 * sd,
        upper=mean + _NORMAL_95 * sd,
        slope=slope,
        slope_lower=slope - _NORMAL_95 * slope_sd,
        slope_upper=slope + _NORMAL_95 * slope_sd,
        amplitude=float(scale * np.exp(best[0])),
        length_scale=float(np.exp(best[1])),
        noise_sd=float(np.sqrt(np.mean(point_noise**2))),
        time_scale=float(np.exp(best[2])),
        point_noise_sd=point_noise,
    )
    return CurvePosterior(
        fit=fit,
        x=x,
        value_draws=values.reshape(-1, x.size) + problem.offset,
        slope_draws=slope_values.reshape(-1, x.size),
        slope_means=slopes,
        slope_sds=slope_sds,
    )


def _mixture(means: np.ndarray, sds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of an even mixture along axis 0."""
    return means.mean(axis=0), np.sqrt(np.mean(sds**2, axis=0) + means.var(axis=0))
