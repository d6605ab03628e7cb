"""Covariances over the local posterior: Bayesian influence functions, loss kernels, principal components.

All of them read the losses on probe batches that a sweep stored (`probes=`) or reduced on the fly
(`reduce="covariance"`). Draws of all chains count alike; errors are the jackknife over chains.

    BIF(z_i, phi)  = -Cov(ell_i, phi)                       (arXiv 2509.26544, eq. 7)
    K_ij           =  Cov(ell_i, ell_j), or the correlation  (arXiv 2509.26537, section 2)
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from llcjax.jackknife import group_coords, jackknifed
from llcjax.moments import chain_sums
from llcjax.types import CHAIN, GROUP


def bif(
    sweep: xr.Dataset,
    train: str,
    query: str,
    *,
    correlation: bool = False,
    num_burnin_steps: int | None = None,
) -> xr.Dataset:
    """Bayesian influence of each training example on each query.

    Args:
        sweep: a sweep with probes of both names; or, for `query`, any observable that was recorded.
        train: name of the probe with the examples z_i.
        query: name of the probe or observable phi.
        correlation: divides by the standard deviations (still with the minus sign).
        num_burnin_steps: sampler steps to leave out; None takes what the sweep was made with. Reduced sweeps are cut
            at the next block.

    Returns:
        `bif` and `bif_stderr` with dimensions `(checkpoint, setting, train, query)`. Times n_beta / n it is the
        derivative of E[phi] when example i gets more weight.

    Raises:
        ValueError: a name that was not recorded, or covariances that were not.
    """
    sums = chain_sums(sweep, train, query, num_burnin_steps)
    return jackknifed(sweep, "bif", lambda s: -s.joined().of(correlation), sums, ("train", "query"))


def loss_kernel(
    sweep: xr.Dataset, probe: str, *, correlation: bool = True, num_burnin_steps: int | None = None
) -> xr.Dataset:
    """Covariance of the losses of each pair of examples, by default as a correlation.

    Args:
        sweep: a sweep with this probe.
        probe: name of the probe.
        correlation: divides by the standard deviations.
        num_burnin_steps: as in `bif`.

    Returns:
        `kernel` and `kernel_stderr` with dimensions `(checkpoint, setting, example, other)`.

    Raises:
        ValueError: as `bif`.
    """
    sums = chain_sums(sweep, probe, probe, num_burnin_steps)
    return jackknifed(sweep, "kernel", lambda s: s.joined().of(correlation), sums, ("example", "other"))


def principal_components(
    sweep: xr.Dataset,
    observable: str = "observed",
    *,
    per_chain: bool = False,
    num_burnin_steps: int | None = None,
) -> xr.Dataset:
    """Principal components of an observable over the draws of all chains, such as of the sampled weights themselves.

    Args:
        sweep: a sweep with `observe=` (or probes), stored or reduced.
        observable: its name.
        per_chain: over the draws of each chain by itself.
        num_burnin_steps: as in `bif`.

    Returns:
        `variance` with dimensions `(checkpoint, setting[, chain], component_index)`, largest first, and `direction`
        with `(checkpoint, setting[, chain], component_index, feature)`, unit vectors.
    """
    sums = chain_sums(sweep, observable, observable, num_burnin_steps)
    covariance = np.nan_to_num((sums if per_chain else sums.joined()).covariance)
    values, vectors = np.linalg.eigh(covariance)
    dims = CHAIN if per_chain else GROUP
    return xr.Dataset(
        {
            "variance": ((*dims, "component_index"), values[..., ::-1]),
            "direction": ((*dims, "component_index", "feature"), np.swapaxes(vectors[..., ::-1], -1, -2)),
        },
        coords=group_coords(sweep),
    )


def chain_covariance(
    sweep: xr.Dataset, observable: str = "observed", *, num_burnin_steps: int | None = None
) -> xr.Dataset:
    """Mean and covariance of an observable within each chain.

    Returns:
        `mean` with dimensions `(checkpoint, setting, chain, feature)` and `covariance` with
        `(checkpoint, setting, chain, feature, other)`.
    """
    sums = chain_sums(sweep, observable, observable, num_burnin_steps)
    return xr.Dataset(
        {"mean": ((*CHAIN, "feature"), sums.mean_a), "covariance": ((*CHAIN, "feature", "other"), sums.covariance)},
        coords=group_coords(sweep),
    )
