"""The published fit of a curve (Hoogland et al., arXiv 2402.02364), for comparison with `llcjax.curves`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tinygp import GaussianProcess, kernels

from llcjax.curves import CurveFit, check_curve, minimize_from

_DIAGONAL = 1e-10  # all the noise there is: what scikit-learn adds for stability


def _process(theta: jax.Array, x: jax.Array) -> GaussianProcess:
    """Return the published process: squared exponential over log(step + 1), mean 0."""
    kernel = jnp.exp(theta[0]) * kernels.ExpSquared(jnp.exp(theta[1]))
    return GaussianProcess(kernel, x, diag=jnp.asarray(_DIAGONAL))


@jax.jit
@jax.value_and_grad
def _objective(theta: jax.Array, x: jax.Array, value: jax.Array) -> jax.Array:
    return -_process(theta, x).log_probability(value)


@jax.jit
def _predict(theta: jax.Array, x: jax.Array, value: jax.Array) -> jax.Array:
    return _process(theta, x).condition(value).gp.loc


def paper_curve(step: Any, value: Any) -> CurveFit:
    """Fit a curve as Hoogland et al. (arXiv 2402.02364) did, at the checkpoints themselves.

    Kernel: variance in [1e-3, 1e3] times a squared exponential of length in [0.5, 1e3] over log(step + 1), no
    noise term (1e-10 on the diagonal, as in scikit-learn), the raw values with mean 0. On their curves the
    optimum lies on both bounds, so this is close to interpolation. The slope is the mean of the left and
    right finite differences of the prediction, with the end points copied from their neighbours.
    Hyperparameters whose matrix cannot be factorised in float64, which long lengths bring about, count as
    impossible, again as in scikit-learn.

    Args:
        step: (C,) training steps, C >= 5.
        value: (C,) values.

    Returns:
        The fit at the C checkpoints. It has no error model: the edges of the bands are NaN.

    Raises:
        ValueError: If the input is not a curve.
    """
    steps, values, *_ = check_curve(step, value)
    x = np.log1p(steps)
    bounds = np.log([[1e-3, 1e3], [0.5, 1e3]])
    starts = np.log([[1.0, 3.0], [1e3, 0.5], [1e3, 2.0], [10.0, 0.7]])
    with jax.enable_x64(True):
        theta = minimize_from(lambda point: _objective(point, x, values), starts, bounds)
        mean = np.asarray(_predict(theta, x, values))
    if not np.all(np.isfinite(mean)):
        raise ValueError("method 'paper' cannot fit these steps in float64 without noise; use method 'gp'.")
    differences = np.diff(mean) / np.diff(x)
    inner = (differences[1:] + differences[:-1]) / 2
    slope, unknown = np.concatenate([inner[:1], inner, inner[-1:]]), np.full(x.size, np.nan)
    return CurveFit(
        step=steps,
        mean=mean,
        lower=unknown,
        upper=unknown,
        slope=slope,
        slope_lower=unknown,
        slope_upper=unknown,
        amplitude=float(np.exp(theta[0] / 2)),
        length_scale=float(np.exp(theta[1])),
        noise_sd=_DIAGONAL**0.5,
        time_scale=1.0,
        point_noise_sd=np.full(x.size, _DIAGONAL**0.5),
    )
