"""Health of chains, measured on their traces. What it means is judged in `llcjax.verdicts`."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from llcjax.convergence import convergence as chain_convergence
from llcjax.types import DRAW

SPIKE = 10.0
"""A draw this many median absolute deviations from the median of its chain is a spike."""

Trace = Float[np.ndarray, "checkpoint setting chain draw"]
Group = Float[np.ndarray, "checkpoint setting"]


def convergence(trace: Trace, usable: Bool[np.ndarray, "checkpoint setting chain"]) -> dict[str, Group]:
    """Rank-normalised split R-hat, bulk and tail ESS, and the Monte-Carlo error of the mean, a group.

    (See `llcjax.convergence`.) NaN where there are fewer than 4 draws or a trace is constant.
    """
    names = {"rhat": "rhat", "ess_bulk": "ess_bulk", "ess_tail": "ess_tail", "mcse": "llc_mcse"}
    result = {name: np.full(trace.shape[:2], np.nan) for name in names.values()}
    if trace.shape[-1] < 4:
        return result
    for chains in np.unique(usable.reshape(-1, usable.shape[-1]), axis=0):
        group = (usable == chains).all(-1)
        traces = trace[group] if chains.all() else trace[group][:, chains]
        moving = np.ptp(traces, axis=(1, 2)) > 0 if chains.any() else np.zeros(len(traces), bool)
        if moving.any():
            group[group] = moving
            with np.errstate(all="ignore"):
                for name, values in chain_convergence(traces[moving]).items():
                    result[names[name]][group] = values
    return result


def trace_shape(trace: Trace, usable: Bool[np.ndarray, "checkpoint setting chain"]) -> dict[str, Group]:
    """What a trace looks like: drift and spikes.

    Returns:
        `drift`: mean of the last third less mean of the first, averaged over chains (no unit, as the LLC); `drift_z`:
        the same over its standard error between chains (Geweke's question, answered by the chains); `spikes`: share
        of draws that lie far outside their chain.
    """
    third = max(trace.shape[-1] // 3, 1)
    with np.errstate(all="ignore"):
        change = trace[..., -third:].mean(-1) - trace[..., :third].mean(-1)
        count = usable.sum(-1)
        drift = np.where(usable, change, 0).sum(-1) / count
        spread = np.where(usable, np.square(change - drift[..., None]), 0).sum(-1) / (count - 1)
        centre = np.median(trace, -1, keepdims=True)
        deviation = np.abs(trace - centre)
        far = (deviation > SPIKE * np.median(deviation, -1, keepdims=True)).mean(-1)
        return {
            "drift": drift,
            "drift_z": np.where(count >= 2, drift / np.sqrt(spread / count), np.nan),
            "spikes": np.where(usable, far, 0).sum(-1) / count,
        }


def geometry(sweep: xr.Dataset, kept: np.ndarray) -> dict[str, Group]:
    """How far the chains went, and what moved them.

    Returns:
        `distance` at the end (mean over the last tenth of the draws) and `farthest`; `distance_scale`, the
        localisation's own sqrt(num_params / localization); `distance_growth` from the middle to the end (sqrt(2) for
        free diffusion); the norms of a step's parts, `gradient_step`, `localization_step` and `noise_step`; and
        for SGLD `heating`, what the first step size and the noise of the batches add to the LLC,

            step_size * n_beta^2 / 8 * E|gradient of the mean loss on a batch|^2.

        Why: at rest E|w - w*|^2 does not change over a step w - step_size/2 F + sqrt(step_size) xi, so that
        E[(w - w*) . F] = num_params + step_size/4 E|F|^2, where the posterior itself has num_params alone (the virial
        theorem); and where the loss is quadratic and holds the chain, the LLC is half of that inner product. Exact
        there up to localization / (n_beta * curvature). Where w* is no minimum it is an upper bound.
    """
    distance = sweep["distance"].isel(draw=kept).transpose(*DRAW).values.astype(np.float64)
    draws = distance.shape[-1]
    width = max(draws // 10, 1)
    middle = distance[..., max(draws // 2 - width // 2, 0) :][..., :width]
    n_beta, localization, step_size = (sweep[name].values for name in ("n_beta", "localization", "step_size"))
    # Components of a refined sweep have a number each.
    num_params = sweep["num_params"].values if "num_params" in sweep.coords else float(sweep.attrs["num_params"])
    with np.errstate(all="ignore"):
        end = _finite_mean(distance[..., -width:])
        facts = {
            "distance": end,
            "farthest": np.where(np.isfinite(distance), distance, -np.inf).max((2, 3)),
            "distance_scale": np.broadcast_to(np.sqrt(num_params / localization), end.shape),
            "distance_growth": end / _finite_mean(middle),
            "localization_step": step_size / 2 * localization * end,
            "noise_step": np.broadcast_to(np.sqrt(step_size * num_params), end.shape),
        }
        if "gradient_norm" in sweep:
            norm = sweep["gradient_norm"].isel(draw=kept).transpose(*DRAW).values
            facts["gradient_step"] = step_size / 2 * n_beta * _finite_mean(norm)
            if json.loads(str(sweep.attrs.get("config", "{}"))).get("sampler") == "sgld":
                facts["heating"] = step_size * n_beta**2 / 8 * _finite_mean(np.square(norm, dtype=np.float64))
    return facts


def acceptances(sweep: xr.Dataset, kept: np.ndarray) -> dict[str, Group]:
    """Mean acceptance probabilities, where they were recorded."""
    names = [name for name in ("acceptance", "acceptance_full") if name in sweep]
    return {name: _finite_mean(sweep[name].isel(draw=kept).transpose(*DRAW).values) for name in names}


def _finite_mean(values: Trace) -> Group:
    """Mean over chains and draws of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum((2, 3), dtype=np.float64)
    count = finite.sum((2, 3))
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
