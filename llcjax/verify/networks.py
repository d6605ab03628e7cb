"""Reduced-rank regression and deep linear networks, whose learning coefficient is a theorem."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.models.deep_linear import product
from llcjax.reference import (
    DeepLinearCase,
    deep_linear_case,
    deep_linear_task,
    largest_curvature,
    random_deep_linear,
)
from llcjax.types import Params
from llcjax.verify.oracles import reduced_rank_expectation
from llcjax.verify.problem import Answer, Problem, settings

_VARIANCE = 100.0 / 3.0  # of the inputs of llcjax.reference.deep_linear_task
TOLERANCE = 0.1
"""Relative distance from the local lambda that is allowed: n_beta and the localisation are finite."""


class _Chains(NamedTuple):
    """How the random teachers of a class are sampled."""

    localization: float
    """The chains move by up to 1 / sqrt(localization) in every free direction, and matrices of such entries have norms
    sqrt(width) times as large: wide networks need a stronger one to stay where they started."""
    num_chains: int
    num_steps: int
    """Of burn-in, and as many of draws."""
    friction: float = 0.01
    """Of SGNHT, a step."""


_CHAINS = {
    "1k": _Chains(10.0, 4, 2000), "10k": _Chains(100.0, 4, 2000), "100k": _Chains(100.0, 4, 1000),
    "1M": _Chains(100.0, 4, 4000, 0.03), "10M": _Chains(100.0, 4, 2000),
}  # fmt: skip
_RESOLUTION = 1e4  # n_beta / localization: curvatures well above its inverse count as half a parameter each

Ranks = tuple[tuple[int, ...], ...]


def small_network_problems(longer: int) -> list[Problem]:
    """Networks of up to 3,000 parameters, `longer` times as many draws."""
    draws = 1500 * longer
    return [
        _zero_teacher((3, 1, 2), draws),
        _zero_teacher((5, 2, 4), draws),
        _teachers((5, 3, 5), ((0, 0), (1, 1), (2, 2), (3, 3)), 1e4, 10.0, draws),
        _teachers((10, 10, 10), ((5, 10), (5, 5)), 1e5, 100.0, draws),
        _teachers((10, 10, 10, 10), ((5, 10, 10), (5, 5, 5)), 1e5, 100.0, draws),
        random_teacher("1k", 0, longer=longer),
    ]


def class_problems(teachers: Sequence[tuple[str, int]]) -> list[Problem]:
    """Random teachers of the given size classes and seeds, and one of them on minibatches."""
    return [_minibatches("1k", 0), *(random_teacher(size_class, seed) for size_class, seed in teachers)]


def _with_truth(params: Params) -> Params:
    """The matrices as the chain sees them: under "w", so that the teacher's product can stand beside them."""
    truth = product({name: np.asarray(matrix, np.float64) for name, matrix in params.items()})
    return {"w": params, "truth": truth.astype(np.float32)}


def _population_loss(params: Params, batch: Any) -> Float[Array, ""]:
    """Expected loss over inputs of variance 100/3, for any shape and teacher."""
    del batch
    return _VARIANCE / 2 * jnp.sum(jnp.square(product(params["w"]) - params["truth"]))


def _case_name(case: DeepLinearCase) -> str:
    widths = ",".join(map(str, case.widths))
    return f"{widths} rank {','.join(map(str, case.layer_ranks))}"


def _answer(case: DeepLinearCase, name: str, params: Params) -> Answer:
    """A teacher judged by the distance from its local lambda."""
    note = "" if case.llc == case.global_llc.llc else f"global minimum {case.global_llc.llc:g}"
    return Answer(name=name, params=params, llc=case.llc, tolerance=TOLERANCE, note=note)


def _step_size(widths: Sequence[int], n_beta: float, share: float) -> float:
    """A share of 1 / (largest curvature of U) where all singular values are at most 1."""
    return share / (n_beta * _VARIANCE * (len(widths) - 1))


def _leaps(widths: Sequence[int], share: float) -> int:
    """Leapfrog steps of a trajectory that takes no curvature 1, 2 or 3 times that of one layer through half a period.

    After a whole number of half periods a direction has the energy that it started with, and would never mix.
    """
    return round(7.9 / math.sqrt(share / (len(widths) - 1)))


def _zero_teacher(widths: tuple[int, int, int], draws: int) -> Problem:
    """Rank 0, where the local posterior is an integral over the eigenvalues of a Wishart matrix."""
    config = settings(
        "hmc", sampler_options={"num_leapfrog_steps": 20}, n_beta=300.0, localization=10.0, step_size=1e-4,
        num_burnin_steps=300, num_draws=draws,
    )  # fmt: skip
    case = deep_linear_case(np.random.default_rng(0), widths, (0, 0))
    answer = Answer(
        name=_case_name(case),
        params=_with_truth(case.params),
        llc=case.llc,
        expectation=functools.partial(reduced_rank_expectation, widths, _VARIANCE, config),
    )
    return Problem(group="reduced rank", name=str(widths), loss_fn=_population_loss, config=config, answers=[answer])


def _teachers(widths: tuple[int, ...], ranks: Ranks, n_beta: float, localization: float, draws: int) -> Problem:
    """Teachers of one shape; layers keep singular values of 1."""
    group, share = "reduced rank" if len(widths) == 3 else "deep linear", 0.3
    config = settings(
        "hmc", sampler_options={"num_leapfrog_steps": _leaps(widths, share)}, n_beta=n_beta, localization=localization,
        num_chains=8, step_size=_step_size(widths, n_beta, share), num_burnin_steps=500, num_draws=draws,
    )  # fmt: skip
    cases = [deep_linear_case(np.random.default_rng(0), widths, rank, aligned=True) for rank in ranks]
    return Problem(
        group=group, name=f"{widths} {ranks}", loss_fn=_population_loss, config=config,
        answers=[_answer(case, _case_name(case), _with_truth(case.params)) for case in cases],
    )  # fmt: skip


def random_teacher(size_class: str, seed: int, *, longer: int = 1, aligned: bool = True) -> Problem:
    """A teacher of a size class of arXiv 2308.12108 on its population loss, sampled by SGNHT.

    With a friction of 1% a step the chains are nearly Hamiltonian: stiff directions warm up within a few hundred steps,
    and free ones diffuse 2 / friction = 200 times as fast as under SGLD of the same step size. Networks of a million
    parameters take 3%: `benchmarks/README.md` says what 0.5% and 3% do there. Steps of a tenth of
    1 / (largest curvature) inflate the stiffest variance by 2.5%.

    Args:
        size_class: a key of `llcjax.reference.SIZE_CLASSES`.
        seed: of the teacher.
        longer: this many times as many draws.
        aligned: see `llcjax.reference.deep_linear_case`.
    """
    case = random_deep_linear(np.random.default_rng(seed), size_class, aligned=aligned)
    population_loss = deep_linear_task(case).population_loss
    localization, num_chains, steps, friction = _CHAINS[size_class]
    n_beta = _RESOLUTION * localization
    config = settings(
        "sgnht", sampler_options={"diffusion": friction}, n_beta=n_beta, localization=localization,
        num_chains=num_chains, step_size=0.1 / (n_beta * largest_curvature(case)), num_burnin_steps=steps,
        num_draws=steps // 10 * longer, num_steps_between_draws=10, draws_per_chunk=100,
    )  # fmt: skip
    return Problem(
        group="deep linear",
        name=f"class {size_class}, teacher {seed}{'' if aligned else ', Gaussian'}",
        loss_fn=lambda params, batch: population_loss(params["w"], batch),
        config=config,
        answers=[_answer(case, f"class {size_class}, teacher {seed}", {"w": case.params})],
    )


def _minibatches(size_class: str, seed: int) -> Problem:
    """Fresh minibatches of 500 at the n_beta of the paper; its step size of 5e-7 would heat the chain by 13%."""
    case = random_deep_linear(np.random.default_rng(seed), size_class, aligned=True)
    task = deep_linear_task(case)
    config = settings(
        "sgld", n_beta=case.n_beta, localization=10.0, step_size=2e-7, num_chains=4, num_burnin_steps=3000,
        num_draws=300, num_steps_between_draws=10, draws_per_chunk=100,
    )  # fmt: skip
    return Problem(
        group="deep linear", name=f"{size_class} {seed} minibatches",
        loss_fn=lambda params, batch: task.loss_fn(params["w"], batch), config=config,
        data=lambda key: task.sample(key, case.batch_size),
        answers=[_answer(case, f"class {size_class}, batches of 500", {"w": case.params})],
    )  # fmt: skip
