"""The LLC and its relatives from a stored sweep. Burn-in and thinning are chosen here, not when sampling.

LLC_k = n_beta * mean_t(L(w_t) - L(w*))  of chain k,   LLC = mean_k LLC_k        (arXiv 2308.12108, eq. 19)

Draws count alike under a decaying step size too. Welling & Teh (2011, eq. 11) weight them by their step, because late
draws bring less that is new; but early draws are those that the step size biases, and R-hat, ESS and the running LLC
then measure the mean that is reported. Both means have the same limit.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr
from jaxtyping import Float

from llcjax import checks, diagnostics, verdicts
from llcjax.types import CHAIN, DRAW, GROUP

DIMS = {
    **dict.fromkeys(("loss", "baseline_loss", "distance", "gradient_norm", "acceptance", "acceptance_full"), DRAW),
    "full_loss": DRAW, "first_nonfinite_step": CHAIN, "num_draws_done": GROUP, "prior_loss": GROUP,
}  # fmt: skip
"""Dimensions of what a sweep records of every run."""
CONFIDENCE = 0.95
BLOCK = 2**21
"""Numbers of one variable that are looked at in one go (16 MiB as float64)."""


def excess_loss(sweep: xr.Dataset, suffix: str = "") -> xr.DataArray:
    """L(w_t) - L(w*) of every recorded draw; `suffix="_position"` gives it for each position.

    Raises:
        ValueError: the sweep did not record positions.
    """
    checks.instance("sweep", sweep, xr.Dataset, "what llcjax.sweep or llcjax.open_sweep returns")
    if not suffix and "loss" not in sweep:
        raise ValueError("sweep has no loss; give what llcjax.sweep or llcjax.open_sweep returns.")
    if f"loss{suffix}" not in sweep:
        raise ValueError("the sweep recorded no losses of positions; sweep with per_position=True.")
    paired = f"baseline_loss{suffix}"
    baseline = sweep[paired] if paired in sweep else sweep[f"init_loss{suffix}"]
    return sweep[f"loss{suffix}"] - baseline


def check_sweep(sweep: Any) -> None:
    """Refuses what is no sweep.

    Raises:
        ValueError: the sentence names what it lacks.
    """
    checks.instance("sweep", sweep, xr.Dataset, "what llcjax.sweep or llcjax.open_sweep returns")
    needed = {"loss", "num_draws_done", "first_nonfinite_step", "draw", "n_beta", "localization", "step_size"}
    if lacking := sorted(needed - set(map(str, sweep.variables))):
        raise ValueError(f"sweep has no {lacking[0]}; give what llcjax.sweep or llcjax.open_sweep returns.")
    for name, wanted in DIMS.items():
        if name in sweep and (set(sweep[name].dims) != set(wanted) or 0 in sweep[name].shape):
            sizes = checks.shown(dict(sweep[name].sizes))
            raise ValueError(f"sweep has a {name} of sizes {sizes}; it needs {', '.join(wanted)}.")


def kept_draws(sweep: xr.Dataset, num_burnin_steps: int | None = None, thin: int = 1) -> np.ndarray:
    """Indices of the draws after the burn-in, every `thin`-th of them.

    Args:
        sweep: a sweep.
        num_burnin_steps: sampler steps to leave out; None takes what the sweep was made with.
        thin: keep every so many draws.

    Raises:
        ValueError: no draws would be left, or a number below its least value.
    """
    check_sweep(sweep)
    burnin = sweep.attrs.get("num_burnin_steps", 0) if num_burnin_steps is None else num_burnin_steps
    burnin, thin = checks.count("num_burnin_steps", burnin, 0), checks.count("thin", thin, 1)
    kept = np.flatnonzero(sweep["draw"].values >= burnin)[::thin]
    if kept.size < 1:
        last = int(sweep["draw"].values[-1])
        raise ValueError(f"num_burnin_steps={burnin} leaves no draws of the {last + 1} steps; choose fewer.")
    return kept


def estimates(sweep: xr.Dataset, *, num_burnin_steps: int | None = None, thin: int = 1) -> xr.Dataset:
    """LLC of each checkpoint and setting, its error, health and verdict.

    Args:
        sweep: facts from `llcjax.sweep` or `llcjax.open_sweep`.
        num_burnin_steps: sampler steps to leave out; None takes what the sweep was made with.
        thin: keep every so many draws.

    Returns:
        Dimensions `(checkpoint, setting[, chain][, half][, position])`; `llc_per_chain_half` is the LLC of each chain
        from the first and from the last half of its draws. `llc_stderr` is the standard deviation of the
        chains' LLCs over the square root of their number, which holds autocorrelation and differences between
        chains alike (with one chain: `llc_mcse`, from the autocorrelation alone), joined with the error of L(w*)
        where that was sampled. `llc_lower` and `llc_upper` bound the 95% interval of Student's t. Chains with a
        loss that is not finite are left out and counted. Health: `rhat`, `ess_bulk`, `ess_tail`,
        `autocorrelation_time` (draws), and what `llcjax.diagnostics` measures of drift, spikes, distances, norms and
        acceptance.

    Raises:
        ValueError: the burn-in leaves no draws.
    """
    kept = kept_draws(sweep, num_burnin_steps, thin)
    result = _measured_in_blocks(sweep, kept)
    result.attrs = {name: sweep.attrs[name] for name in ("chance", "num_examples") if name in sweep.attrs}
    result.attrs.update(num_burnin_steps=int(sweep["draw"].values[kept[0]]), num_draws=len(kept))
    if "prior_loss" in sweep:
        result["prior_loss"] = sweep["prior_loss"]
    names, sentences = verdicts.judge(sweep, result)
    result["verdict"], result["sentence"] = (GROUP, names), (GROUP, sentences)
    return result


def checkpoint_blocks(sweep: xr.Dataset) -> list[xr.Dataset]:
    """The sweep in pieces of neighbouring checkpoints, each small enough to hold in memory as float64."""
    count = sweep.sizes["checkpoint"]
    recorded = sweep["loss_position"] if "loss_position" in sweep else sweep["loss"]
    size = max(BLOCK * count // max(recorded.size, 1), 1)
    return [sweep.isel(checkpoint=slice(start, start + size)) for start in range(0, count, size)]


def _measured_in_blocks(sweep: xr.Dataset, kept: np.ndarray) -> xr.Dataset:
    """What is measured of each group, a block of checkpoints at a time, so that memory does not grow with their number.

    Threads read and rank at once: numpy lets them.
    """
    blocks = checkpoint_blocks(sweep)
    if len(blocks) == 1:
        return _measured(sweep, kept)
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        measured = list(workers.map(lambda block: _measured(block, kept), blocks))
    return xr.concat(measured, "checkpoint", data_vars="minimal", coords="minimal", compat="override", join="override")


def _measured(sweep: xr.Dataset, kept: np.ndarray) -> xr.Dataset:
    """LLC, errors and health of some checkpoints."""
    n_beta = sweep["n_beta"].values[None, :, None, None]
    # Read once: a store is lazy, and every use would read it again.
    recorded = [name for name in sweep.data_vars if sweep[name].dims == DRAW]
    sweep = sweep.assign({name: sweep[name].compute() for name in recorded})
    loss = sweep["loss"].isel(draw=kept).transpose(*DRAW).values.astype(np.float64)
    excess = excess_loss(sweep.isel(draw=kept)).transpose(*DRAW).values.astype(np.float64)
    trace = n_beta * excess
    usable = (sweep["first_nonfinite_step"].values < 0) & np.isfinite(trace).all(-1)
    per_chain = np.where(usable, trace.mean(-1), np.nan)
    middle = max(trace.shape[-1] // 2, 1)
    halves = [np.where(usable, part.mean(-1), np.nan) for part in (trace[..., :middle], trace[..., -middle:])]
    health = {
        **diagnostics.convergence(trace, usable),
        **diagnostics.trace_shape(trace, usable),
        **diagnostics.geometry(sweep, kept),
        **diagnostics.acceptances(sweep, kept),
    }
    spread, error = _errors(per_chain, usable, health["llc_mcse"], _baseline_error(sweep, n_beta[..., 0, 0]))
    llc = _mean(per_chain, usable)
    with np.errstate(all="ignore"):
        health["autocorrelation_time"] = usable.sum(-1) * len(kept) / health["ess_bulk"]
        at_start = (loss - excess).mean(-1)  # of chains that met an infinite loss not a number
    result = xr.Dataset(
        {
            "llc": (GROUP, llc),
            "llc_stderr": (GROUP, error),
            "llc_lower": (GROUP, llc - spread * error),
            "llc_upper": (GROUP, llc + spread * error),
            "llc_per_chain": (CHAIN, per_chain),
            "llc_per_chain_half": ((*CHAIN, "half"), np.stack(halves, -1)),
            **{name: (GROUP, values) for name, values in health.items()},
            "num_chains_used": (GROUP, usable.sum(-1)),
            "mean_loss": (GROUP, _mean(loss.mean(-1), usable)),
            "init_loss": (GROUP, _mean(at_start, usable)),
        },
        coords={name: sweep[name] for name in sweep.coords if name != "draw" and name != "position"},
    )
    return result.merge(_per_position(sweep, kept, usable)) if "loss_position" in sweep else result


def _mean(values: Float[np.ndarray, "... chain"], usable: np.ndarray) -> Float[np.ndarray, ...]:
    """Mean over the usable chains; NaN where there is none."""
    total = np.where(usable, values, 0).sum(-1)
    return np.divide(total, usable.sum(-1), out=np.full(total.shape, np.nan), where=usable.any(-1))


def _errors(
    per_chain: np.ndarray, usable: np.ndarray, mcse: np.ndarray, baseline: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The quantile of Student's t and the standard error of each LLC."""
    count = usable.sum(-1)
    deviations = np.where(usable, per_chain - _mean(per_chain, usable)[..., None], 0)
    variance = np.square(deviations).sum(-1) / np.maximum(count - 1, 1) / np.maximum(count, 1)
    between = np.where(count >= 2, np.sqrt(variance), mcse)
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, np.where(count >= 2, count - 1, np.inf))
    return quantile, np.where(count >= 1, np.hypot(between, baseline), np.nan)


def _baseline_error(sweep: xr.Dataset, n_beta: np.ndarray) -> np.ndarray:
    """Error of the LLC that comes from a sampled L(w*)."""
    if "baseline_loss" in sweep or "init_loss_stderr" not in sweep:
        return np.zeros((sweep.sizes["checkpoint"], sweep.sizes["setting"]))
    return np.asarray(n_beta * sweep["init_loss_stderr"].values[:, None])


def _per_position(sweep: xr.Dataset, kept: np.ndarray, usable: np.ndarray) -> xr.Dataset:
    """LLC of each position k: n_beta times the excess loss of position k alone."""
    n_beta = sweep["n_beta"].values[None, :, None, None]
    dims = (*CHAIN, "position", "draw")
    excess = excess_loss(sweep.isel(draw=kept), "_position").transpose(*dims).values.astype(np.float64)
    per_chain = np.moveaxis(n_beta * excess.mean(-1), -1, -2)
    usable = np.broadcast_to(usable[..., None, :], per_chain.shape)
    _, error = _errors(per_chain, usable, np.full(per_chain.shape[:-1], np.nan), np.zeros(per_chain.shape[:-1]))
    group = (*GROUP, "position")
    return xr.Dataset(
        {"llc_position": (group, _mean(per_chain, usable)), "llc_position_stderr": (group, error)},
        coords={"position": sweep["position"]},
    )


def running_llc(sweep: xr.Dataset, *, num_burnin_steps: int | None = None) -> xr.DataArray:
    """The LLC of each chain over the draws so far, against the draw; NaN during the burn-in.

    Returns:
        Dimensions `(checkpoint, setting, chain, draw)`.
    """
    kept = kept_draws(sweep, num_burnin_steps)
    trace = sweep["n_beta"] * excess_loss(sweep)
    trace = trace.transpose(*DRAW).compute()
    after = trace.isel(draw=kept)
    running = after.cumsum("draw", skipna=False) / xr.DataArray(np.arange(1, len(kept) + 1), dims="draw")
    return running.assign_coords(draw=after["draw"]).reindex(draw=sweep["draw"])


def wbic(sweep: xr.Dataset, *, num_burnin_steps: int | None = None, log_likelihood: bool) -> xr.DataArray:
    """Widely applicable Bayesian information criterion, n * E[L(w)] at n_beta = n / ln(n).

    Args:
        sweep: a sweep over array data.
        num_burnin_steps: sampler steps to leave out.
        log_likelihood: states that the loss is a negative log-likelihood; WBIC means nothing otherwise.

    Returns:
        Dimensions `(checkpoint, setting)`, in nats (Watanabe 2013, eq. 15).

    Raises:
        ValueError: the loss is no log-likelihood, or n_beta is not n / ln(n); the sentence says what to do.
    """
    if not log_likelihood:
        raise ValueError(
            "WBIC needs a loss that is a negative log-likelihood; squared error is one only after scaling."
        )
    check_sweep(sweep)
    if "num_examples" not in sweep.attrs:
        raise ValueError("WBIC needs a number of examples n; sweep over arrays, not over a function.")
    size = int(sweep.attrs["num_examples"])
    wanted = size / np.log(size)
    off = np.abs(sweep["n_beta"].values / wanted - 1) > 0.01
    if off.any():
        raise ValueError(
            f"WBIC needs n_beta = n / ln(n) = {wanted:.6g}, but the sweep has "
            f"n_beta={sweep['n_beta'].values[off][0]:.6g}; sweep with that n_beta."
        )
    kept = kept_draws(sweep, num_burnin_steps)
    alive = (sweep["first_nonfinite_step"] < 0) & (sweep["num_draws_done"] >= sweep.sizes["draw"])
    # A mean over the chains that are whole; none of them leaves NaN.
    per_chain = sweep["loss"].isel(draw=kept).mean("draw", skipna=False)
    return size * per_chain.where(alive).mean("chain")
