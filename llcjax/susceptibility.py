"""Susceptibilities of the components of a model (arXiv 2504.18274): how their losses answer to a shift of the data.

chi_xy = -Cov(phi_C, ell_xy - L)                 (appendix C.4)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from llcjax.jackknife import jackknifed
from llcjax.moments import Sums, chain_sums
from llcjax.observables import INIT_PROBE, weighted


def susceptibilities(
    sweep: xr.Dataset,
    probe: str,
    reference: str,
    *,
    full: str | None = None,
    init_loss: float | None = None,
    correlation: bool = False,
    num_burnin_steps: int | None = None,
) -> xr.Dataset:
    """Response of each component's loss to a shift of the data towards each probe example (or token).

        chi = -(E[phi (ell - L)] - E[phi] E[ell - L]),      phi = L - L(w*)

    over the chains of the component, with L the mean loss of the probe `reference`.

    Args:
        sweep: a sweep with both probes, usually over `components`.
        probe: name of the probe whose examples (or tokens, with per_position) shift the data.
        reference: name of the probe that stands for the data distribution.
        full: name of a component with all parameters: E[ell - L] is then taken over its chains, as in appendix C.4
            and in devinterp (phi_C holds a delta function of the weights outside C, so that the two expectations
            belong to two posteriors). None takes it over the component's own chains: a covariance, free of what
            differs between the two.
        init_loss: L(w*), which matters with `full` alone; None takes that of the probe `reference` or, in stores of
            devinterp, theirs, on batches of the sampling data.
        correlation: divides by the standard deviations of phi and of ell - L; not with `full`.
        num_burnin_steps: as in `llcjax.bif`.

    Returns:
        `susceptibility` and `susceptibility_stderr` with dimensions `(checkpoint, setting, example)`, where tokens of
        an example follow each other with per_position. Positive: the mean loss over the component's posterior rises as
        examples like this become more frequent.

    Raises:
        ValueError: as `llcjax.bif`; an unknown `full`; `full` with `correlation`.
    """
    if full is not None and correlation:
        raise ValueError("correlation=True has no meaning with full; choose one of the two.")
    sums = _shift_sums(sweep, probe, reference, init_loss, num_burnin_steps)
    if full is None:
        statistic: Callable[[Sums], np.ndarray] = lambda s: -s.joined().of(correlation)[..., 0, :]  # noqa: E731
    else:
        names = sweep["component"].values.astype(str) if "component" in sweep.coords else np.array([])
        if full not in names:
            raise ValueError(f"full={full!r} is no component of the sweep; its components are {', '.join(names)}.")
        row = _row_of_full(sweep, names, full)

        def statistic(s: Sums) -> np.ndarray:
            all_chains = s.joined()
            expected = all_chains.mean_b[:, row]  # E[ell - L] over the full posterior
            product = all_chains.scatter[..., 0, :] / np.maximum(all_chains.count, 1)[..., None]
            return -(product + all_chains.mean_a * (all_chains.mean_b - expected))

    return jackknifed(sweep, "susceptibility", statistic, sums, ("example",))


def _shift_sums(
    sweep: xr.Dataset, probe: str, reference: str, init_loss: float | None, num_burnin_steps: int | None
) -> Sums:
    """Moments of a = L - L(w*) and b = ell - L, which are linear in the losses that the sweep has moments of."""
    across = chain_sums(sweep, reference, probe, num_burnin_steps)
    within = chain_sums(sweep, reference, reference, num_burnin_steps)
    counts = weighted(sweep, reference).reshape(-1)
    share = counts / counts.sum()
    if INIT_PROBE + reference in sweep:
        start = np.nan_to_num(sweep[INIT_PROBE + reference].values.reshape(sweep.sizes["checkpoint"], -1)) @ share
    else:
        start = sweep["init_loss"].values
    start = start if init_loss is None else np.full_like(start, init_loss)
    mean = across.mean_a @ share
    product = np.einsum("a,...ab->...b", share, across.scatter)  # of L and ell
    square = np.einsum("a,...ab,b->...", share, within.scatter, share)[..., None]
    return Sums(
        across.count,
        (mean - start[:, None, None])[..., None],
        across.mean_b - mean[..., None],
        (product - square)[..., None, :],
        square,
        across.squares_b - 2 * product + square,
    )


def _row_of_full(sweep: xr.Dataset, names: np.ndarray, full: str) -> np.ndarray:
    """For each setting, the setting of the full component with the same hyperparameters."""
    hyper = np.stack([sweep[name].values for name in ("n_beta", "localization", "step_size")], 1)
    return np.array([int(np.flatnonzero((names == full) & (hyper == hyper[i]).all(1))[0]) for i in range(len(names))])
