"""Losses whose local posterior is a closed form or an integral in one or two dimensions, without singularities."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.config import SweepConfig
from llcjax.reference import quadratic_llc, quadrature_llc
from llcjax.types import Params
from llcjax.verify.oracles import Expectation, exact, polynomial_expectation
from llcjax.verify.problem import Answer, Problem, horner, settings

_CURVATURES = {
    "quadratic, isotropic": ([1.0, 1.0, 1.0, 1.0], 0.0),
    "quadratic, spread 50": ([0.02, 0.1, 0.3, 1.0], 0.0),
    "quadratic, 2 of 4 flat": ([1.0, 0.5, 0.0, 0.0], 0.0),
    "quadratic, off its minimum": ([1.0, 0.5, 0.2, 0.1], 0.15),
}
_WELLS = {
    "skew quartic": ([0.0, 0.0, 0.1, 0.5, 1.0], 0.0),
    "double well": ([0.1, 0.0, -0.2, 0.0, 0.1], 1.0),
    "sextic": ([0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0], 0.0),
    "quartic, off its minimum": ([0.0, 0.0, 0.0, 0.0, 1.0], 0.5),
}
_VALLEYS = {"bent valley": (1.0, 0.5), "log cosh": (0.0, 2.0), "steep bent valley": (2.0, 1.0)}
_OFF = "anchor is no minimum"


def smooth_problems(longer: int) -> list[Problem]:
    """Quadratics and smooth wells, `longer` times as many draws."""
    quadratic = {"n_beta": 200.0, "localization": 2.0, "num_burnin_steps": 1500, "num_draws": 1000 * longer}
    well = {"n_beta": 30.0, "localization": 0.5, "num_burnin_steps": 1000, "num_draws": 1000 * longer}
    hmc = {"num_steps_between_draws": 2, "num_burnin_steps": 300}
    return [
        _quadratics(settings("sgld", step_size=4e-3, num_steps_between_draws=10, **quadratic)),
        _quadratics(settings("mala", step_size=5e-3, num_steps_between_draws=10, **quadratic)),
        # Five leapfrog steps take no curvature through half a period, after which a mode would keep its energy.
        _quadratics(settings("hmc", step_size=1e-3, sampler_options={"num_leapfrog_steps": 5}, **{**quadratic, **hmc})),
        _masked(settings("sgld", step_size=4e-3, num_steps_between_draws=10, weight_decay=4.0, **quadratic)),
        _minibatches(settings("sgld", step_size=1e-3, num_steps_between_draws=10, **{**quadratic, "batch_size": 8})),
        _wells(settings("sgld", step_size=4e-3, num_steps_between_draws=10, **well)),
        _wells(settings("mala", step_size=0.03, num_steps_between_draws=5, **well)),
        _wells(settings("hmc", step_size=4e-3, sampler_options={"num_leapfrog_steps": 8}, **{**well, **hmc})),
        _valleys(settings("mala", step_size=0.02, num_steps_between_draws=10, **well)),
        _valleys(settings("hmc", step_size=3e-3, sampler_options={"num_leapfrog_steps": 12}, **{**well, **hmc})),
    ]


def _quadratic_loss(params: Params, batch: Any) -> Float[Array, ""]:
    del batch
    return jnp.sum(params["curvature"] * params["w"] ** 2) / 2


def _quadratic_expectation(
    curvature: Float[np.ndarray, " direction"], config: SweepConfig, anchor: float = 0.0, noise: Any = 0.0
) -> Expectation:
    setting = config.settings[0]
    # Around 0, where anchors with a weight decay lie, the decay adds to the localisation.
    options = {"n_beta": setting.n_beta, "localization": setting.localization + config.weight_decay, "anchor": anchor}
    posterior = quadratic_llc(curvature, **options)
    if config.sampler != "sgld":
        return exact(posterior)
    return Expectation(
        posterior, quadratic_llc(curvature, **options, step_size=setting.step_size, gradient_variance=noise)
    )


def _quadratics(config: SweepConfig) -> Problem:
    answers = [
        Answer(
            name=name,
            params={"w": np.full(4, anchor, np.float32), "curvature": np.array(curvature, np.float32)},
            llc=None if anchor else np.count_nonzero(curvature) / 2,
            expectation=functools.partial(_quadratic_expectation, np.array(curvature), config, anchor),
            note=_OFF if anchor else "",
        )
        for name, (curvature, anchor) in _CURVATURES.items()
    ]
    return Problem(group="quadratic", name=config.sampler, loss_fn=_quadratic_loss, config=config, answers=answers)


def _masked(config: SweepConfig) -> Problem:
    curvature, mask = np.array([1.0, 0.5, 0.2, 0.1]), np.array([True, False, True, True])
    answer = Answer(
        name="quadratic, 3 of 4 sampled",
        params={"w": np.zeros(4, np.float32), "curvature": curvature.astype(np.float32)},
        llc=1.5,
        expectation=functools.partial(_quadratic_expectation, curvature[mask], config),
        note="mask and weight decay",
    )
    return Problem(
        group="quadratic", name="masked", loss_fn=_quadratic_loss, config=config, answers=[answer], mask=mask
    )


def _minibatches(config: SweepConfig) -> Problem:
    """Losses sum_i h_i (w_i - x_i)^2 / 2 of examples x: the noise of their gradients does not depend on w."""
    curvature = np.array([1.0, 0.3], np.float32)
    data = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    noise = curvature**2 * data.var(0, dtype=np.float64) / config.batch_size
    answer = Answer(
        name="quadratic, batches of 8",
        params={"w": data.mean(0, dtype=np.float64).astype(np.float32)},
        llc=1.0,
        expectation=functools.partial(_quadratic_expectation, curvature, config, noise=noise),
        note="heated by minibatches",
    )

    def loss_fn(params: Params, batch: Float[Array, "batch 2"]) -> Float[Array, " batch"]:
        return jnp.sum(curvature * (params["w"] - batch) ** 2, -1) / 2

    return Problem(group="quadratic", name="minibatches", loss_fn=loss_fn, config=config, answers=[answer], data=data)


def _polynomial_loss(params: Params, batch: Any) -> Float[Array, ""]:
    """Sum of polynomials, one a coordinate."""
    del batch
    return jnp.sum(horner(params["coefficients"], params["w"]))


def _wells(config: SweepConfig) -> Problem:
    answers = [
        Answer(
            name=name,
            params={
                "w": np.array([anchor], np.float32),
                "coefficients": np.array([coefficients + [0.0] * (7 - len(coefficients))], np.float32),
            },
            llc=None if "off" in name else 0.5,
            expectation=functools.partial(polynomial_expectation, [coefficients], [anchor], config),
            note=_OFF if "off" in name else "",
        )
        for name, (coefficients, anchor) in _WELLS.items()
    ]
    return Problem(group="quadrature", name=f"wells {config.sampler}", loss_fn=_polynomial_loss, config=config,
                   answers=answers)  # fmt: skip


def _valley_value(w: Any, bend: Any, scale: Any, numpy: Any) -> Any:
    """(w_2 - bend w_1^2)^2 / 2 + log cosh(scale w_1) for points in rows."""
    along, across = w[..., 0], w[..., 1]
    cosh = numpy.logaddexp(scale * along, -scale * along) - np.log(2)
    return (across - bend * along**2) ** 2 / 2 + cosh


def _valley_loss(params: Params, batch: Any) -> Float[Array, ""]:
    del batch
    return _valley_value(params["w"], params["bend"], params["scale"], jnp)


def _valley_expectation(bend: float, scale: float, config: SweepConfig) -> Expectation:
    setting = config.settings[0]
    numbers = {"n_beta": setting.n_beta, "localization": setting.localization, "rtol": 1e-7}
    return exact(quadrature_llc(lambda w: _valley_value(w, bend, scale, np), np.zeros(2), **numbers))


def _valleys(config: SweepConfig) -> Problem:
    answers = [
        Answer(
            name=name,
            params={"w": np.zeros(2, np.float32), "bend": np.float32(bend), "scale": np.float32(scale)},
            llc=1.0,
            expectation=functools.partial(_valley_expectation, bend, scale, config),
        )
        for name, (bend, scale) in _VALLEYS.items()
    ]
    return Problem(group="quadrature", name=f"valleys {config.sampler}", loss_fn=_valley_loss, config=config,
                   answers=answers)  # fmt: skip
