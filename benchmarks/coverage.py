"""Whether error bars mean something: how often the 95% interval covers, and how near the stated errors are to the true.

Replicates are copies of one checkpoint at different training steps: with `common="none"` the step enters the keys, so
that their batches and noise are independent. SGLD is held against the law of its own discretised recursion, MALA and
HMC against quadrature of the posterior.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import xarray as xr
from jaxtyping import Float

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig, as_dict
from llcjax.reference import quadratic_llc, quadrature_llc
from llcjax.types import LossFn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An estimate whose expectation is known."""

    name: str
    loss_fn: LossFn
    anchor: Float[np.ndarray, " parameter"]
    data: Any
    config: SweepConfig
    expectation: float
    """Of the LLC under the law that the chains have."""


def quadratic(num_chains: int, num_draws: int) -> Case:
    """SGLD on a quadratic with curvatures from 0.02 to 1; the expectation is that of the discretised chain."""
    curvature = np.array([0.02, 0.3, 1.0])
    config = SweepConfig(
        n_beta=200.0, localization=2.0, step_size=4e-3, num_chains=num_chains, num_draws=num_draws,
        num_burnin_steps=800, batch_size=None,
    )  # fmt: skip
    return Case(
        name="quadratic, 3 parameters, full batch",
        loss_fn=lambda w, _: 0.5 * jnp.sum(jnp.asarray(curvature, jnp.float32) * w**2),
        anchor=np.zeros(3),
        data=None,
        config=config,
        expectation=quadratic_llc(curvature, n_beta=200.0, localization=2.0, step_size=4e-3),
    )


def regression(batch_size: int) -> Case:
    """SGLD on a linear regression of 1000 examples in 20 dimensions, from its minimum."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 20))
    y = x @ rng.normal(size=20) + rng.normal(size=1000)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    config = SweepConfig(
        n_beta=1000 / np.log(1000), localization=1.0, step_size=5e-4, num_chains=4, num_draws=300,
        num_burnin_steps=200, batch_size=batch_size, baseline="dataset",
    )  # fmt: skip
    return Case(
        name=f"regression, 20 parameters, n = 1000, batch {batch_size}",
        loss_fn=lambda w, batch: jnp.square(batch[0] @ w - batch[1]),
        anchor=best,
        data=(x.astype(np.float32), y.astype(np.float32)),
        config=config,
        expectation=regression_expectation(x, y - x @ best, config),
    )


def regression_expectation(
    x: Float[np.ndarray, "example feature"], residual: Float[np.ndarray, " example"], config: SweepConfig
) -> float:
    """Expected LLC of SGLD on minibatches of a linear regression with loss (y - x.w)^2, from its minimum.

    The deviation d from the minimum has mean 0 at every step, and with A = 1 - step_size/2 (n_beta H + localization),
    H = 2 E[x x^T], its covariance follows

        S <- A S A + step_size + (step_size n_beta / 2)^2 / batch_size * (4 E[x x^T (x^T S x + residual^2)] - H S H)

    from S = 0, because the gradient of a batch has independent, identically distributed terms 2 x (x.d - residual).

    Args:
        x: inputs.
        residual: y - x.w at the minimum.
        config: one setting of SGLD with minibatches, every step a draw.
    """
    setting, (size, width) = config.settings[0], x.shape
    assert config.batch_size is not None
    hessian = 2 * x.T @ x / size
    shrink = np.eye(width) - setting.step_size / 2 * (setting.n_beta * hessian + setting.localization * np.eye(width))
    scale = (setting.step_size * setting.n_beta / 2) ** 2 / config.batch_size
    covariance, draws = np.zeros((width, width)), []
    for step in range(config.num_burnin_steps + config.num_draws):
        if step >= config.num_burnin_steps:
            draws.append(setting.n_beta * np.sum(hessian * covariance) / 2)
        squares = np.sum((x @ covariance) * x, 1) + residual**2
        noise = 4 * (x * squares[:, None]).T @ x / size - hessian @ covariance @ hessian
        covariance = shrink @ covariance @ shrink + setting.step_size * np.eye(width) + scale * noise
    return float(np.mean(draws))


def quartic(sampler: str, num_draws: int) -> Case:
    """MALA or HMC on a skewed quartic in one dimension."""
    # Small leapfrog steps: larger ones are unstable in the stiff tails, where the chain then sticks.
    step_size, options = (4e-3, {"num_leapfrog_steps": 8}) if sampler == "hmc" else (0.05, {})
    config = SweepConfig(
        sampler=sampler, sampler_options=options, n_beta=30.0, localization=0.5, step_size=step_size, num_chains=4,
        num_draws=num_draws, num_burnin_steps=200, batch_size=None,
    )  # fmt: skip
    return _oracle("w^4 + w^3 / 2 + w^2 / 10", _quartic_loss, 1, config)


def crossing(sampler: str, num_draws: int) -> Case:
    """MALA or HMC where two valleys cross: a singular minimum."""
    step_size, options = (1e-2, {"num_leapfrog_steps": 8}) if sampler == "hmc" else (0.05, {})
    config = SweepConfig(
        sampler=sampler, sampler_options=options, n_beta=30.0, localization=2.0, step_size=step_size, num_chains=4,
        num_draws=num_draws, num_burnin_steps=200, batch_size=None,
    )  # fmt: skip
    return _oracle("w1^2 w2^2", lambda w: w[..., 0] ** 2 * w[..., 1] ** 2, 2, config)


def _quartic_loss(w: Any) -> Any:
    return w[..., 0] ** 4 + w[..., 0] ** 3 / 2 + w[..., 0] ** 2 / 10


def _oracle(name: str, loss: Callable[[Any], Any], size: int, config: SweepConfig) -> Case:
    setting, anchor = config.settings[0], np.zeros(size)
    return Case(
        name=name,
        loss_fn=lambda w, _: loss(w),
        anchor=anchor,
        data=None,
        config=config,
        expectation=quadrature_llc(loss, anchor, n_beta=setting.n_beta, localization=setting.localization),
    )


def replicated(case: Case, count: int) -> xr.Dataset:
    """Independent estimates of a case, along the dimension `checkpoint`."""
    anchors = np.repeat(case.anchor.astype(np.float32)[None], count, 0)
    bank = CheckpointBank(params=anchors, steps=np.arange(count))
    config = dataclasses.replace(case.config, common="none", draws_per_chunk=10_000, runs_per_launch=2048)
    facts = llcjax.sweep(case.loss_fn, bank, case.data, config, devices=jax.local_devices()[:1])
    return llcjax.estimates(facts).isel(setting=0)


def row(case: Case, table: xr.Dataset) -> Row:
    """Coverage and errors of the estimates of a case."""
    count, chains = table.sizes["checkpoint"], case.config.num_chains
    llc, stated = table["llc"].values, table["llc_stderr"].values
    covered = float(np.mean((table["llc_lower"].values <= case.expectation) & (case.expectation <= table["llc_upper"])))
    normal = float(np.mean(np.abs(llc - case.expectation) <= scipy.stats.norm.ppf(0.975) * stated))
    spread = llc.std(ddof=1)
    ratio = spread / np.sqrt(np.mean(stated**2))
    return {
        "sampler": case.config.sampler,
        "case": case.name,
        "chains": chains,
        "draws": case.config.num_draws,
        "effective draws a chain": float(np.median(table["ess_bulk"].values)) / chains,
        "replicates": count,
        "expected LLC": case.expectation,
        "mean estimate": float(llc.mean()),
        "its error": float(spread / np.sqrt(count)),
        "coverage (%)": 100 * covered,
        "its error (%)": 100 * float(np.sqrt(covered * (1 - covered) / count)),
        "coverage of +- 1.96 errors (%)": 100 * normal,
        "true / stated error": float(ratio),
        "its Monte-Carlo error": float(ratio * np.sqrt(1 / (2 * (count - 1)) + 1 / (2 * count * (chains - 1)))),
    }


def cases() -> Sequence[Case]:
    """All cases."""
    return [
        *(quadratic(*counts) for counts in ((4, 400), (2, 1000), (4, 1000), (10, 1000))),
        *(regression(batch) for batch in (32, 128)),
        *(build(sampler, 300) for sampler in ("mala", "hmc") for build in (quartic, crossing)),
        quartic("hmc", 1000),
    ]


def measure(options: Options) -> Measured:
    """Replicates every case; `--only` takes samplers."""
    wanted = [case for case in cases() if options.wants(case.config.sampler)]
    count = 16 if options.toy else 2000
    rows = [row(case, replicated(case, count)) for case in wanted]
    covered = [entry["coverage (%)"] for entry in rows]
    ratios = [entry["true / stated error"] for entry in rows]
    return Measured(
        title="Coverage of the 95% intervals, and true over stated standard errors",
        rows=rows,
        settings={"cases": [{"name": case.name, **as_dict(case.config)} for case in wanted]},
        notes=[
            f"Coverage lies between {min(covered):.1f}% and {max(covered):.1f}%; the true spread of the estimates is "
            f"{min(ratios):.2f} to {max(ratios):.2f} times the stated error (root mean square).",
            "Intervals are Student's t with chains - 1 degrees of freedom; beside it what +- 1.96 standard errors "
            "cover. Errors of the table are Monte Carlo: binomial for the coverage. LLCs of chains with few effective "
            "draws (median over replicates) are skewed to the right, and intervals around their mean cover less.",
        ],
    )


if __name__ == "__main__":
    run("coverage", measure)
