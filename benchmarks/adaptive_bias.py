"""How far the laws of the adaptive samplers and of SGNHT are from the target on Gaussians, where it is known.

Their discretised laws have no closed form; an independent run of the same recursion in NumPy, float64, has the same
one. So the table shows two things: that the sampler does what its recursion says (the two ratios agree), and what that
recursion does to the variance and to the LLC. Options are the defaults but where stated; gradients are full-batch.

SGNHT has a closed form where its friction xi is at rest. On a curvature p the products of w and v at rest obey
E[w v] = E[v^2] / 2 and step_size p E[w^2] = (1 - xi / 2) E[v^2], and the thermostat holds E[v^2] at the step size: the
variance is 1 - xi / 2 of the target's, with xi near `diffusion`, however small the step.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.samplers import SAMPLERS

N_BETA, LOCALIZATION = 40.0, 2.0
STEP_SIZES = (1e-3, 4e-3, 1e-2)
VARIANTS: tuple[tuple[str, dict[str, float]], ...] = (
    ("rmsprop_sgld", {}),
    ("adam_sgld", {}),
    ("sgnht", {}),
    ("sgnht", {"diffusion": 0.02}),
)

Matrix = Float[np.ndarray, "parameter parameter"]
Draws = Float[np.ndarray, "setting chain draw parameter"]


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """Lengths of the chains, the same for llcjax and NumPy."""

    chains: int
    draws: int
    burnin: int = 2000
    between: int = 50


def gaussians() -> dict[str, tuple[Matrix, np.ndarray]]:
    """Hessian of the loss, and which parameters are sampled."""
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    correlated = rotation @ np.diag([0.2, 0.6, 1.0]) @ rotation.T
    free = np.ones(3, bool)
    return {
        "isotropic": (np.eye(3), free),
        "correlated": (correlated, free),
        "correlated, masked": (correlated, np.array([True, False, True])),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A sampler on a Gaussian."""

    sampler: str
    options: dict[str, float]
    """Beside the defaults."""
    hessian: Matrix
    """Of the loss."""
    mask: np.ndarray
    """Which parameters are sampled."""
    seed: int

    def option(self, name: str) -> float:
        """The value of an option; 0 for the momentum of a sampler that has none."""
        parameters = inspect.signature(SAMPLERS[self.sampler]).parameters
        return self.options.get(name, parameters[name].default if name in parameters else 0.0)

    @property
    def part(self) -> Matrix:
        """The Hessian of the sampled parameters: a masked Gaussian is a smaller one."""
        return self.hessian[np.ix_(self.mask, self.mask)]


def sampled(case: Case, counts: Counts) -> Draws:
    """Draws of llcjax."""
    matrix = jnp.asarray(case.hessian, jnp.float32)
    config = SweepConfig(
        sampler=case.sampler, sampler_options=case.options, n_beta=N_BETA, localization=LOCALIZATION,
        step_size=STEP_SIZES, num_chains=counts.chains, num_draws=counts.draws, num_burnin_steps=counts.burnin,
        num_steps_between_draws=counts.between, batch_size=None, seed=case.seed,
        runs_per_launch=len(STEP_SIZES) * counts.chains,
    )  # fmt: skip
    facts = llcjax.sweep(
        lambda w, _: 0.5 * w @ matrix @ w, bank_of(jnp.zeros(3)), None, config, mask=case.mask, observe=lambda w: w
    )
    kept = facts["draw"].values >= counts.burnin
    return facts["observed"].values[0][:, :, kept][..., case.mask].astype(np.float64)


def recursion(case: Case, counts: Counts) -> Draws:
    """Draws of the same recursion in NumPy."""
    move = _sgnht if case.sampler == "sgnht" else _preconditioned
    states = move(case, (len(STEP_SIZES), counts.chains, len(case.part)), np.random.default_rng(case.seed))
    last = counts.burnin + (counts.draws - 1) * counts.between
    every = itertools.islice(states, counts.burnin, last + 1, counts.between)
    return np.stack(list(every), 2)


def _preconditioned(case: Case, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    momentum, decay, stability = (case.option(name) for name in ("momentum", "decay", "stability"))
    step_size = np.array(STEP_SIZES)[:, None, None]
    w, first, second = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for count in itertools.count(1):
        yield w
        gradient = w @ case.part
        first = momentum * first + (1 - momentum) * gradient
        second = decay * second + (1 - decay) * gradient**2
        step = step_size / (np.sqrt(second / (1 - decay**count)) + stability)
        force = N_BETA * first / (1 - momentum**count) + LOCALIZATION * w
        w = w - step / 2 * force + np.sqrt(step) * rng.normal(size=shape)


def _sgnht(case: Case, shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
    diffusion, step_size = case.option("diffusion"), np.array(STEP_SIZES)[:, None, None]
    w, velocity, friction = np.zeros(shape), np.zeros(shape), np.full((*shape[:2], 1), diffusion)
    while True:
        yield w
        kick = step_size * (N_BETA * w @ case.part + LOCALIZATION * w)
        noise = np.sqrt(2 * diffusion * step_size) * rng.normal(size=shape)
        velocity = velocity - friction * velocity - kick + noise
        friction = friction + np.mean(velocity**2, -1, keepdims=True) - step_size
        w = w + velocity


def mean_square(draws: Draws, weight: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """E[w^T weight w] for each step size, and its standard error from the spread between chains."""
    per_chain = np.einsum("scdi,ij,scdj->sc", draws, weight, draws) / draws.shape[2]
    return per_chain.mean(1), per_chain.std(1, ddof=1) / np.sqrt(per_chain.shape[1])


def rows(case: Case, gaussian: str, counts: Counts) -> Iterator[Row]:
    """One row a step size."""
    target = np.linalg.inv(N_BETA * case.part + LOCALIZATION * np.eye(len(case.part)))
    ours, theirs = sampled(case, counts), recursion(case, counts)
    trace, curvature = np.eye(len(target)) / np.trace(target), case.part / np.sum(case.part * target)
    columns = [*mean_square(ours, trace), *mean_square(theirs, trace), *mean_square(ours, curvature)]
    for step_size, *values in zip(STEP_SIZES, *columns, strict=True):
        ratio, error, again, error_again, llc, llc_error = map(float, values)
        yield {
            "sampler": ", ".join([case.sampler, *(f"{name} {value:g}" for name, value in case.options.items())]),
            "Gaussian": gaussian,
            "step size": step_size,
            "variance / target": ratio,
            "error": error,
            "the same in NumPy, float64": again,
            "its error": error_again,
            "z of the difference": (ratio - again) / float(np.hypot(error, error_again)),
            "LLC / target": llc,
            "error of the LLC": llc_error,
        }


def measure(options: Options) -> Measured:
    """Every adaptive sampler on every Gaussian; `--only` takes samplers."""
    counts = Counts(chains=64, draws=4, burnin=300) if options.toy else Counts(chains=1024, draws=20)
    wanted = [variant for variant in VARIANTS if options.wants(variant[0])]
    seeds = itertools.count()
    found = [
        row
        for sampler, extra in wanted
        for gaussian, (hessian, mask) in gaussians().items()
        for row in rows(Case(sampler, extra, hessian, mask, next(seeds)), gaussian, counts)
    ]
    worst = max(abs(row["z of the difference"]) for row in found)
    return Measured(
        title="Bias of the adaptive samplers on Gaussians",
        rows=found,
        settings={
            "n_beta": N_BETA,
            "localization": LOCALIZATION,
            "Hessians": {name: hessian.tolist() for name, (hessian, _) in gaussians().items()},
            **dataclasses.asdict(counts),
        },
        notes=[
            f"llcjax and NumPy differ by at most {worst:.1f} standard errors over {len(found)} comparisons.",
            "The variance is the trace of the covariance over the sampled parameters. With its friction xi at rest "
            "SGNHT has 1 - xi / 2 of the target's, with xi near `diffusion` (0.1), at every step size.",
        ],
    )


if __name__ == "__main__":
    run("adaptive_bias", measure)
