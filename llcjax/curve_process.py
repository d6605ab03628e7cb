"""The Gaussian process of a noisy curve, in time linear in the number of its points.

The curve is a Matern 5/2 process and its level a constant; errors of neighbouring points that share keys are an
Ornstein-Uhlenbeck process along log(step + 1), scaled by the standard error of each point. All three are Markov in the
same order of the points, so their sum is quasi-separable (Foreman-Mackey et al. 2017, arXiv 1703.09710) and needs no
(C, C) matrix. A covariance of any other form is taken as it is, at cubic cost. Everything here runs in float64.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from tinygp import GaussianProcess, kernels, noise
from tinygp.kernels import quasisep

LEVEL_VARIANCE = 10.0  # prior variance of the curve's level, in variances of the values: it is left free
_JITTER = 1e-11  # added to posterior covariances before their Cholesky factor, in variances of the values
_NUGGET = 1e-12  # variance that every measured point has beside its error

Data = dict[str, jax.Array]
"""The points: `step`, `value`, `position` (-1 to 1 along the curve), each (C,), and their errors: `stderr` (C,),
`share` and `length` (see `llcjax.correlation.CurveErrors`), or `error` (C, C)."""

_Place = Any
"""Of one point: log(step + time scale), log(step + 1) and its standard error."""


class _Curve(quasisep.Wrapper):
    """The curve itself, over log(step + time scale)."""

    def coord_to_sortable(self, X: _Place) -> jax.Array:
        return X[0]


class _Level(quasisep.Quasisep):
    """A constant."""

    variance: jax.Array

    def coord_to_sortable(self, X: _Place) -> jax.Array:
        return X[0]

    def design_matrix(self) -> jax.Array:
        return jnp.zeros((1, 1))

    def stationary_covariance(self) -> jax.Array:
        return self.variance[None, None]

    def observation_model(self, X: _Place) -> jax.Array:
        return jnp.ones(1)

    def transition_matrix(self, X1: _Place, X2: _Place) -> jax.Array:
        return jnp.ones((1, 1))


class _SharedErrors(quasisep.Quasisep):
    """Errors that are correlated along log(step + 1)."""

    share: jax.Array
    length: jax.Array

    def coord_to_sortable(self, X: _Place) -> jax.Array:
        return X[0]

    def design_matrix(self) -> jax.Array:
        return -1 / self.length[None, None]

    def stationary_covariance(self) -> jax.Array:
        return self.share[None, None]

    def observation_model(self, X: _Place) -> jax.Array:
        return X[2][None]

    def transition_matrix(self, X1: _Place, X2: _Place) -> jax.Array:
        return jnp.exp(-jnp.abs(X2[1] - X1[1]) / self.length)[None, None]


def _process(theta: jax.Array, data: Data) -> GaussianProcess:
    """Return the process of the points under (log amplitude, log length, log time scale, log noise, noise trend)."""
    amplitude, length, time_scale = jnp.exp(theta[0]), jnp.exp(theta[1]), jnp.exp(theta[2])
    fitted = jnp.exp(2 * (theta[3] + theta[4] * data["position"])) + _NUGGET
    # Dynamics below the time scale are smooth in steps, so a stationary kernel of log(step + 1) would be far
    # too loose there; on the published regression curve the time scale is worth 65 to 145 nats of evidence.
    x = jnp.log(data["step"] + time_scale)
    if "error" in data:
        return GaussianProcess(_kernel(theta), x, noise=noise.Dense(data["error"] + jnp.diag(fitted)))
    errors = _SharedErrors(data["share"], data["length"])
    kernel = _Curve(quasisep.Matern52(length, amplitude)) + _Level(jnp.asarray(LEVEL_VARIANCE)) + errors
    own = fitted + (1 - data["share"]) * data["stderr"] ** 2
    places: _Place = (x, jnp.log1p(data["step"]), data["stderr"])
    return GaussianProcess(kernel, places, diag=own, assume_sorted=True)


def _kernel(theta: jax.Array) -> kernels.Kernel:
    """Return the covariance of the curve without errors, over log(step + time scale)."""
    return jnp.exp(2 * theta[0]) * kernels.Matern52(jnp.exp(theta[1])) + kernels.Constant(LEVEL_VARIANCE)


@jax.jit
@jax.value_and_grad
def objective(theta: jax.Array, data: Data, prior_mean: jax.Array, prior_sd: jax.Array) -> jax.Array:
    """Return the negative log posterior density of the hyperparameters, with its gradient."""
    prior = 0.5 * jnp.sum(((theta - prior_mean) / prior_sd) ** 2)
    return prior - _process(theta, data).log_probability(data["value"])


@jax.jit
def predict_all(thetas: jax.Array, data: Data, grid_x: jax.Array, normals: jax.Array) -> tuple[jax.Array, ...]:
    """Return `_predict` of each hyperparameter draw (H, ...), one after another to keep the memory small."""
    return jax.lax.map(lambda pair: _predict(pair[0], data, grid_x, pair[1]), (thetas, normals))


def _predict(theta: jax.Array, data: Data, grid_x: jax.Array, normals: jax.Array) -> tuple[jax.Array, ...]:
    """Return mean, sd, slope mean, slope sd (G,), value and slope draws (n, G) for one theta."""
    new, old = (jnp.log(step + jnp.exp(theta[2])) for step in (jnp.expm1(grid_x), data["step"]))
    kernel, solver = _kernel(theta), _process(theta, data).solver
    known = solver.solve_triangular(kernel(old, new))
    mean = known.T @ solver.solve_triangular(data["value"])
    covariance = kernel(new, new) - known.T @ known
    factor = jnp.linalg.cholesky(covariance + _JITTER * jnp.eye(grid_x.size))
    values = mean + normals @ factor.T
    # The slope is a linear operator (central differences), so its law is exact up to the spacing of the grid.
    spacing = grid_x[1] - grid_x[0]
    slope_variance = jnp.diagonal(_slope(_slope(covariance, spacing).T, spacing))
    sds = [jnp.sqrt(jnp.maximum(v, 0.0)) for v in (jnp.diagonal(covariance), slope_variance)]
    return mean, sds[0], _slope(mean, spacing), sds[1], values, _slope(values, spacing)


def _slope(values: jax.Array, spacing: jax.Array) -> jax.Array:
    """Return the central differences along the last axis."""
    return cast(jax.Array, jnp.gradient(values, spacing, axis=-1))
