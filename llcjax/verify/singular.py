"""Normal crossings and sums of monomials, at the settings of other implementations and at ours.

The others are devinterp's own tests, with what it was measured to give: crossings from `sampler_accuracy_test.py`
(release 1.3.2), monomials from `examples/llc_calibration.py` of pull request 113 (release 2.0.1, whose estimate holds
the burn-in).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.config import SweepConfig
from llcjax.reference import crossing_llc, monomial_sum_llc
from llcjax.types import Params
from llcjax.verify.oracles import Expectation, crossing_expectation, polynomial_expectation
from llcjax.verify.problem import Answer, Problem, horner, settings

_N_BETA = 1000 / math.log(1000)
_VARIANCE = 4.0  # of the inputs of a crossing

CROSSING_PEERS = {
    (0, 1): "0.554 ± 0.021", (1, 1): "0.468 ± 0.153", (0, 2): "0.214 ± 0.036", (1, 2): "0.263 ± 0.136",
    (2, 2): "0.165 ± 0.066", (0, 3): "0.158 ± 0.036", (1, 3): "0.165 ± 0.073", (2, 3): "0.152 ± 0.086",
    (3, 3): "0.109 ± 0.052",
}  # fmt: skip
MONOMIAL_PEERS = {
    (2,): "0.533 ± 0.060", (4,): "0.266 ± 0.071", (2, 2): "1.018 ± 0.077", (4, 2): "0.763 ± 0.071",
    (2, 2, 2): "1.535 ± 0.115",
}  # fmt: skip
_IMPROPER = "improper at localization 0"


def singular_problems(longer: int) -> list[Problem]:
    """Crossings and monomials; those at our settings take `longer` times as many draws."""
    ours = {"n_beta": _N_BETA, "num_draws": 1000 * longer}
    sgld = settings(
        "sgld", localization=3.0, step_size=2e-4, num_burnin_steps=15_000, num_steps_between_draws=60, **ours
    )
    mala = settings(
        "mala", localization=10.0, step_size=1e-3, num_burnin_steps=3000, num_steps_between_draws=30, **ours
    )
    hmc = settings(
        "hmc", sampler_options={"num_leapfrog_steps": 20}, localization=1.0, step_size=3e-4, num_burnin_steps=300,
        num_steps_between_draws=2, **ours,
    )  # fmt: skip
    free = {**ours, "localization": 0.0}
    return [
        _crossings_of_peers(),
        *(_crossings(config) for config in (sgld, mala, hmc)),
        *(_monomials_of_peers(length) for length in (1, 2, 3)),
        _monomials(settings("mala", step_size=5e-3, num_burnin_steps=1000, num_steps_between_draws=10, **free)),
        _monomials(settings("hmc", step_size=2e-3, num_burnin_steps=200, num_steps_between_draws=2, **free)),
    ]


def _powers(params: Params) -> Float[Array, " coordinate"]:
    """w_i^p_i for powers up to 6, by Horner's rule on a one-hot polynomial: no NaN in the gradient at 0."""
    one_hot = (params["powers"][:, None] == jnp.arange(7)).astype(jnp.float32)
    return horner(one_hot, params["w"])


def _anchor(powers: Sequence[int]) -> Params:
    return {"w": np.zeros(len(powers), np.float32), "powers": np.array(powers, np.float32)}


def _crossing_loss(params: Params, batch: tuple[Array, Array]) -> Float[Array, " batch"]:
    inputs, targets = batch
    return jnp.square(inputs * jnp.prod(_powers(params)) - targets)


def _population_crossing_loss(params: Params, batch: Any) -> Float[Array, ""]:
    del batch
    return _VARIANCE * jnp.square(jnp.prod(_powers(params)))


def _monomial_loss(params: Params, batch: Any) -> Float[Array, ""]:
    del batch
    return jnp.sum(_powers(params)) / 2


def _crossing_answer(powers: tuple[int, int], **facts: Any) -> Answer:
    name = f"crossing {powers[0]},{powers[1]}"
    return Answer(name=name, params=_anchor(powers), llc=crossing_llc(powers).llc, **facts)


def _crossings(config: SweepConfig) -> Problem:
    """The loss averaged over its inputs, at a localisation that makes every row proper."""
    answers = [
        _crossing_answer(
            powers,
            expectation=functools.partial(crossing_expectation, powers, _VARIANCE, config),
            note=f"localization {config.localization[0]:g}",
        )
        for powers in CROSSING_PEERS
    ]
    return Problem(
        group="crossing", name=config.sampler, loss_fn=_population_crossing_loss, config=config, answers=answers
    )


def _crossings_of_peers() -> Problem:
    """The model f(x; w) = x prod w_i^p_i on 1,000 examples x ~ N(0, 4), y ~ N(0, 1/16), no localisation, no burn-in."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(scale=2.0, size=1000).astype(np.float32)
    targets = rng.normal(scale=0.25, size=1000).astype(np.float32)
    config = settings("sgld", n_beta=_N_BETA, localization=0.0, step_size=4e-4, num_chains=10, num_draws=5000)
    answers = [
        _crossing_answer(
            powers,
            # With one power at 0 its weight diffuses for ever but the loss does not see it.
            expectation=functools.partial(_one_factor, powers, inputs, targets, config) if 0 in powers else None,
            peers=value,
            note="peers' settings" if 0 in powers else _IMPROPER,
        )
        for powers, value in CROSSING_PEERS.items()
    ]
    return Problem(group="crossing", name="as the peers", loss_fn=_crossing_loss, config=config, answers=answers,
                   data=(inputs, targets))  # fmt: skip


def _one_factor(
    powers: tuple[int, int],
    inputs: Float[np.ndarray, " example"],
    targets: Float[np.ndarray, " example"],
    config: SweepConfig,
) -> Expectation:
    """The mean squared error in the one weight that matters is a polynomial."""
    x, y = inputs.astype(np.float64), targets.astype(np.float64)
    terms = np.zeros(2 * max(powers) + 1)
    terms[[0, max(powers), -1]] = np.mean(y * y), -2 * np.mean(x * y), np.mean(x * x)
    return polynomial_expectation([terms], [0.0], config)


def _monomial_answer(powers: tuple[int, ...], config: SweepConfig, **facts: Any) -> Answer:
    coefficients = np.eye(7)[list(powers)] / 2
    return Answer(
        name=f"monomials {','.join(map(str, powers))}",
        params=_anchor(powers),
        llc=monomial_sum_llc(powers).llc,
        expectation=functools.partial(polynomial_expectation, list(coefficients), [0.0] * len(powers), config),
        **facts,
    )


def _monomials_of_peers(length: int) -> Problem:
    """Sums of w_i^p_i / 2, without data."""
    config = settings(
        "sgld", n_beta=_N_BETA, localization=0.0, step_size=1e-3, num_chains=8, num_burnin_steps=1000, num_draws=1000
    )
    answers = [
        _monomial_answer(powers, config, peers=value, note="peers' settings")
        for powers, value in MONOMIAL_PEERS.items()
        if len(powers) == length
    ]
    return Problem(group="monomial", name=f"as the peers {length}", loss_fn=_monomial_loss, config=config,
                   answers=answers)  # fmt: skip


def _monomials(config: SweepConfig) -> Problem:
    answers = [_monomial_answer(powers, config, note="localization 0") for powers in ((2, 2), (4, 2), (4, 4), (6, 4))]
    return Problem(group="monomial", name=config.sampler, loss_fn=_monomial_loss, config=config, answers=answers)
