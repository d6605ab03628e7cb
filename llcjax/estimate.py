"""One call from a pure loss to an LLC with its error and verdict."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from llcjax import checks, show
from llcjax.checkpoints import bank_of
from llcjax.config import Baseline, Precision, SweepConfig
from llcjax.data import data_source
from llcjax.estimators import estimates, kept_draws
from llcjax.keys import as_key
from llcjax.sweep import sweep
from llcjax.types import LossFn, Params, PRNGKey
from llcjax.verdicts import Verdict, free_share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LLCEstimate:
    """The LLC of one set of parameters, and what it is worth."""

    llc: float
    """Estimate (no unit)."""
    stderr: float
    """Standard error over chains."""
    interval: tuple[float, float]
    """95% interval (Student's t with chains - 1 degrees of freedom)."""
    verdict: Verdict
    """Name and sentence."""
    rhat: float
    """Rank-normalised split R-hat of the LLC trace."""
    ess: float
    """Bulk effective sample size of all chains."""
    llc_per_chain: Float[np.ndarray, " chain"]
    """LLC of each chain; NaN for a chain that broke."""
    loss_trace: Float[np.ndarray, "chain draw"]
    """L(w_t) of the draws after the burn-in."""
    init_loss: float
    """L(w*), on the batches of the draws or on all examples."""
    mean_loss: float
    """Mean sampled loss."""
    free_share: float
    """Rise of the loss as a share of that of draws from the localisation prior alone: near 1 the loss does not hold the
    chains (`llcjax.verdicts.free_share`); NaN without `num_control_draws`."""
    n_beta: float
    """The n_beta that was used."""

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = {
            "LLC": f"{self.llc:.4g} ± {self.stderr:.2g}",
            "95% interval": f"{self.interval[0]:.4g} to {self.interval[1]:.4g}",
            "verdict": f"{self.verdict.name}: {self.verdict.sentence}",
            "R-hat, ESS": f"{self.rhat:.3f}, {self.ess:,.0f}",
            "loss at w*, sampled": f"{self.init_loss:.4g}, {self.mean_loss:.4g}",
            "n_beta": f"{self.n_beta:.4g}",
        }
        if math.isfinite(self.free_share):
            rows["share of the rise of draws from the localization prior"] = f"{self.free_share:.0%}"
        return show.table(rows)

    def __str__(self) -> str:
        return f"LLC {self.llc:.4g} +- {self.stderr:.2g} ({self.verdict.name}: {self.verdict.sentence})"


def auto_n_beta(data: Any) -> float:
    """N / ln(n) for arrays of n examples, Watanabe's inverse temperature.

    Raises:
        ValueError: data is a function or holds fewer than 3 examples.
    """
    size = data_source(data).num_examples
    if size is None or size < 3:
        raise ValueError("n_beta='auto' means n / ln(n) and needs arrays of at least 3 examples; give a number.")
    return size / math.log(size)


def estimate_llc(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    *,
    key: PRNGKey | int,
    n_beta: float | Literal["auto"],
    step_size: float,
    localization: float,
    num_chains: int = 4,
    num_draws: int = 200,
    num_burnin_steps: int = 0,
    num_steps_between_draws: int = 1,
    batch_size: int | None = None,
    sampler: str = "sgld",
    sampler_options: dict[str, float] | None = None,
    step_size_decay: float = 0.0,
    step_size_decay_time: float = 1000.0,
    mask: Params | None = None,
    baseline: Baseline = "paired",
    num_baseline_batches: int | None = None,
    num_control_draws: int = 0,
    precision: Precision = "highest",
    chance: float | None = None,
    progress: bool = False,
) -> LLCEstimate:
    """Estimates the local learning coefficient at one set of parameters (arXiv 2308.12108).

    Args:
        loss_fn: `(params, batch) -> losses` of shape `(batch,)` or `(batch, position)`, or `(losses, weights)`, or a
            scalar mean. Pure; dropout and the like must be off.
        params: pytree of float arrays, w*.
        data: pytree of arrays with a leading example axis, or `(key) -> batch`, or None for a loss without data.
        key: a jax key or a seed.
        n_beta: number of examples times inverse temperature; "auto" is n / ln(n) for arrays.
        step_size: SGLD step (squared parameters).
        localization: gamma, precision of the Gaussian around w* (inverse squared parameters).
        num_chains: independent chains.
        num_draws: draws a chain after the burn-in.
        num_burnin_steps: steps left out before them.
        num_steps_between_draws: steps from one draw to the next.
        batch_size: examples a minibatch; None takes all.
        sampler: sgld, rmsprop_sgld, adam_sgld, sgnht; or mala and hmc on the full batch.
        sampler_options: options of the sampler, such as `{"decay": 0.99}` of rmsprop_sgld.
        step_size_decay: exponent of a decaying step, step_size * (1 + t / time)^-exponent at step t; 0 = constant.
        step_size_decay_time: sampler steps over which the decay sets in.
        mask: pytree of booleans: True is sampled, False stays at w* (the refined LLC of those parameters).
        baseline: `paired` subtracts L(w*) on the batch of each draw, `dataset` L(w*) on all examples.
        num_baseline_batches: batches for `baseline="dataset"` where data is a function.
        num_control_draws: draws from the localisation prior alone, to tell whether the loss holds the chains.
        precision: of matrix products on accelerators.
        chance: loss of a trivial predictor, to tell whether the chains left the basin.
        progress: shows a progress bar.

    Returns:
        The estimate. A chain that breaks is left out, counted and reported, never averaged.

    Raises:
        ValueError: bad input, before anything is computed.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda w, _: 0.5 * jnp.sum(w**2)  # two regular directions: LLC 2/2 as n_beta grows
        >>> r = estimate_llc(loss, jnp.zeros(2), None, key=0, n_beta=1e4, step_size=1e-5, localization=1.0,
        ...                  num_chains=8, num_draws=2000, num_burnin_steps=200)
        >>> abs(r.llc - 1.0) < 0.15, r.verdict.name
        (True, 'ok')
    """
    if isinstance(n_beta, str) and n_beta != "auto":
        raise ValueError(f"n_beta={n_beta!r} must be a number or 'auto'.")
    for name, value in (("localization", localization), ("step_size", step_size)):
        checks.number(name, value)
    if sampler_options is not None:
        checks.instance("sampler_options", sampler_options, dict, "a dict of numbers by name")
    config = SweepConfig(
        sampler=sampler,
        sampler_options=sampler_options or {},
        step_size_decay=step_size_decay,
        step_size_decay_time=step_size_decay_time,
        n_beta=(auto_n_beta(data) if isinstance(n_beta, str) else checks.number("n_beta", n_beta),),
        localization=(localization,),
        step_size=(step_size,),
        num_chains=num_chains,
        num_draws=num_draws,
        num_burnin_steps=num_burnin_steps,
        num_steps_between_draws=num_steps_between_draws,
        batch_size=batch_size,
        baseline=baseline,
        num_baseline_batches=num_baseline_batches,
        num_control_draws=num_control_draws,
        precision=precision,
    )
    result = sweep(loss_fn, bank_of(params), data, config, key=as_key(key), mask=mask, chance=chance, progress=progress)
    table = estimates(result).isel(checkpoint=0, setting=0)
    return LLCEstimate(
        llc=float(table["llc"]),
        stderr=float(table["llc_stderr"]),
        interval=(float(table["llc_lower"]), float(table["llc_upper"])),
        verdict=Verdict(str(table["verdict"].item()), str(table["sentence"].item())),
        rhat=float(table["rhat"]),
        ess=float(table["ess_bulk"]),
        llc_per_chain=table["llc_per_chain"].values,
        loss_trace=result["loss"].isel(checkpoint=0, setting=0, draw=kept_draws(result)).values,
        init_loss=float(table["init_loss"]),
        mean_loss=float(table["mean_loss"]),
        free_share=float(free_share(table)),
        n_beta=config.n_beta[0],
    )
