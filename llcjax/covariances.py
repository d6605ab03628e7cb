"""Covariances over the local posterior: Bayesian influence functions, loss kernels, susceptibilities.

All of them read the losses on probe batches that a sweep stored (`probes=`) or reduced on the fly
(`reduce="covariance"`). Draws of all chains count alike; errors are the jackknife over chains.

    BIF(z_i, phi)  = -Cov(ell_i, phi)                       (arXiv 2509.26544, eq. 7)
    K_ij           =  Cov(ell_i, ell_j), or the correlation  (arXiv 2509.26537, section 2)
    chi_xy         = -Cov(phi_C, ell_xy - L)                 (arXiv 2504.18274, appendix C.4)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr

from llcjax.estimators import kept_draws
from llcjax.observables import INIT_PROBE, PROBE, weighted

GROUP = ("checkpoint", "setting")


class Sums(NamedTuple):
    """Moments of two vectors of observables a and b; leading axes `(checkpoint, setting, chain)`, then without chain.

    Chains that broke count 0 draws.
    """

    count: np.ndarray
    mean_a: np.ndarray
    mean_b: np.ndarray
    scatter: np.ndarray
    """Sum of products of the deviations of a and b, `(..., a, b)`."""
    squares_a: np.ndarray
    """Sum of squares of the deviations of a."""
    squares_b: np.ndarray

    def joined(self) -> Sums:
        """Moments over all chains together (Chan, Golub & LeVeque 1979)."""
        weight = self.count[..., None] / np.maximum(self.count.sum(-1, keepdims=True), 1)[..., None]
        mean_a, mean_b = (weight * self.mean_a).sum(-2), (weight * self.mean_b).sum(-2)
        root = np.sqrt(self.count)[..., None]
        gap_a, gap_b = root * (self.mean_a - mean_a[..., None, :]), root * (self.mean_b - mean_b[..., None, :])
        return Sums(
            self.count.sum(-1),
            mean_a,
            mean_b,
            self.scatter.sum(-3) + np.einsum("...ca,...cb->...ab", gap_a, gap_b),
            self.squares_a.sum(-2) + np.square(gap_a).sum(-2),
            self.squares_b.sum(-2) + np.square(gap_b).sum(-2),
        )

    def without(self, chain: int) -> Sums:
        """The moments of all chains but one."""
        count = self.count.copy()
        count[..., chain] = 0
        return self._replace(
            count=count,
            scatter=_zeroed(self.scatter, chain, 3),
            squares_a=_zeroed(self.squares_a, chain, 2),
            squares_b=_zeroed(self.squares_b, chain, 2),
        )

    @property
    def covariance(self) -> np.ndarray:
        """Covariances, `(..., a, b)`."""
        with np.errstate(all="ignore"):
            return self.scatter / np.where(self.count > 1, self.count - 1, np.nan)[..., None, None]

    @property
    def correlation(self) -> np.ndarray:
        """Correlations, `(..., a, b)`; NaN where something does not vary."""
        with np.errstate(all="ignore"):
            return self.scatter / np.sqrt(self.squares_a[..., :, None] * self.squares_b[..., None, :])


def _zeroed(values: np.ndarray, chain: int, axis_from_end: int) -> np.ndarray:
    moved = np.moveaxis(values.copy(), -axis_from_end, 0)
    moved[chain] = 0
    return np.moveaxis(moved, 0, -axis_from_end)


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
    sums = _sums(sweep, train, query, num_burnin_steps)
    return _with_error(sweep, "bif", lambda s: -_of(s.joined(), correlation), sums, ("train", "query"))


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
    sums = _sums(sweep, probe, probe, num_burnin_steps)
    return _with_error(sweep, "kernel", lambda s: _of(s.joined(), correlation), sums, ("example", "other"))


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
        num_burnin_steps: as in `bif`.

    Returns:
        `susceptibility` and `susceptibility_stderr` with dimensions `(checkpoint, setting, example)`, where tokens of
        an example follow each other with per_position. Positive: the mean loss over the component's posterior rises as
        examples like this become more frequent.

    Raises:
        ValueError: as `bif`; an unknown `full`; `full` with `correlation`.
    """
    if full is not None and correlation:
        raise ValueError("correlation=True has no meaning with full; choose one of the two.")
    sums = _shift_sums(sweep, probe, reference, init_loss, num_burnin_steps)
    if full is None:
        statistic: Callable[[Sums], np.ndarray] = lambda s: -_of(s.joined(), correlation)[..., 0, :]  # noqa: E731
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

    return _with_error(sweep, "susceptibility", statistic, sums, ("example",))


def principal_components(
    sweep: xr.Dataset, observable: str = "observed", *, num_burnin_steps: int | None = None
) -> xr.Dataset:
    """Principal components of an observable over the draws of all chains, such as of the sampled weights themselves.

    Args:
        sweep: a sweep with `observe=` (or probes), stored or reduced.
        observable: its name.
        num_burnin_steps: as in `bif`.

    Returns:
        `variance` with dimensions `(checkpoint, setting, component_index)`, largest first, and `direction` with
        `(checkpoint, setting, component_index, feature)`, unit vectors.
    """
    sums = _sums(sweep, observable, observable, num_burnin_steps).joined()
    covariance = np.nan_to_num(sums.covariance)
    values, vectors = np.linalg.eigh(covariance)
    return xr.Dataset(
        {
            "variance": ((*GROUP, "component_index"), values[..., ::-1]),
            "direction": ((*GROUP, "component_index", "feature"), np.swapaxes(vectors[..., ::-1], -1, -2)),
        },
        coords=_group_coords(sweep),
    )


def chain_covariance(
    sweep: xr.Dataset, observable: str = "observed", *, num_burnin_steps: int | None = None
) -> xr.Dataset:
    """Mean and covariance of an observable within each chain.

    Returns:
        `mean` with dimensions `(checkpoint, setting, chain, feature)` and `covariance` with
        `(checkpoint, setting, chain, feature, other)`.
    """
    sums = _sums(sweep, observable, observable, num_burnin_steps)
    dims = (*GROUP, "chain")
    return xr.Dataset(
        {"mean": ((*dims, "feature"), sums.mean_a), "covariance": ((*dims, "feature", "other"), sums.covariance)},
        coords=_group_coords(sweep),
    )


def _of(sums: Sums, correlation: bool) -> np.ndarray:
    return sums.correlation if correlation else sums.covariance


def _with_error(
    sweep: xr.Dataset, name: str, statistic: Callable[[Sums], np.ndarray], sums: Sums, dims: tuple[str, ...]
) -> xr.Dataset:
    """A statistic of all chains, with the jackknife over chains as its standard error."""
    used = sums.count > 0
    leave_out = np.stack([statistic(sums.without(chain)) for chain in range(used.shape[-1])])
    used_first = np.moveaxis(used, -1, 0).reshape(*leave_out.shape[:3], *[1] * (leave_out.ndim - 3))
    number = used_first.sum(0)
    centre = np.where(used_first, leave_out, 0).sum(0) / np.maximum(number, 1)
    squares = np.where(used_first, np.square(leave_out - centre), 0).sum(0)
    error = np.where(number > 1, np.sqrt((number - 1) / np.maximum(number, 1) * squares), np.nan)
    return xr.Dataset(
        {name: ((*GROUP, *dims), statistic(sums)), f"{name}_stderr": ((*GROUP, *dims), error)},
        coords=_group_coords(sweep),
    )


def _group_coords(sweep: xr.Dataset) -> dict[str, xr.DataArray]:
    return {str(name): sweep[name] for name in sweep.coords if set(sweep[name].dims) <= set(GROUP)}


def _variable(sweep: xr.Dataset, name: str) -> str | None:
    return next((found for found in (PROBE + name, name) if found in sweep), None)


def _stored(sweep: xr.Dataset, name: str) -> None:
    features = [entry[0] for entry in sweep.attrs.get("features", [])]
    if _variable(sweep, name) is None and not {name, PROBE + name} & set(features):
        held = sorted({*(str(n).removeprefix(PROBE) for n in sweep if str(n).startswith(PROBE)), *features})
        raise ValueError(f"the sweep recorded no {name!r}; it has: {', '.join(held) or 'no probes'}. Give it as probe.")


def _sums(sweep: xr.Dataset, a: str, b: str, num_burnin_steps: int | None) -> Sums:
    """Moments of each chain, from stored draws or from streamed blocks."""
    for name in (a, b):
        _stored(sweep, name)
    usable = sweep["first_nonfinite_step"].transpose(*GROUP, "chain").values < 0
    if _variable(sweep, a) is not None and _variable(sweep, b) is not None:
        kept = kept_draws(sweep, num_burnin_steps)
        first, second = (_draws(sweep, str(_variable(sweep, name)), kept) for name in (a, b))
        return _cleared(_sums_of_draws(first, second), usable)
    return _cleared(_sums_of_blocks(sweep, a, b, num_burnin_steps), usable)


def _draws(sweep: xr.Dataset, name: str, kept: np.ndarray) -> np.ndarray:
    """Draws of a variable as `(checkpoint, setting, chain, draw, feature)`."""
    part = sweep[name].isel(draw=kept)
    rest = [dim for dim in part.dims if dim not in (*GROUP, "chain", "draw")]
    values = part.transpose(*GROUP, "chain", "draw", *rest).values.astype(np.float64)
    return values.reshape(*values.shape[:4], -1)


def _sums_of_draws(first: np.ndarray, second: np.ndarray) -> Sums:
    mean_a, mean_b = first.mean(-2), second.mean(-2)
    gap_a, gap_b = first - mean_a[..., None, :], second - mean_b[..., None, :]
    return Sums(
        np.full(first.shape[:3], float(first.shape[3])),
        mean_a,
        mean_b,
        np.swapaxes(gap_a, -1, -2) @ gap_b,
        np.square(gap_a).sum(-2),
        np.square(gap_b).sum(-2),
    )


def _sums_of_blocks(sweep: xr.Dataset, a: str, b: str, num_burnin_steps: int | None) -> Sums:
    """Moments of each chain from the blocks after the burn-in."""
    if "moment_scatter" not in sweep:
        raise ValueError("the sweep kept means alone; sweep with reduce='covariance' (or 'none').")
    burnin = int(sweep.attrs["num_burnin_steps"]) if num_burnin_steps is None else num_burnin_steps
    kept = np.flatnonzero(sweep["block"].values >= burnin)
    if not kept.size:
        raise ValueError(f"num_burnin_steps={burnin} leaves no block of draws; choose fewer, or more num_blocks.")
    first, second = (_places(sweep, name) for name in (a, b))
    blocks = sweep.isel(block=kept)
    dims = (*GROUP, "chain", "block")
    count = blocks["moment_count"].transpose(*dims).values.astype(np.float64)
    mean = blocks["moment_mean"].transpose(*dims, ...).values.astype(np.float64)
    scatter = blocks["moment_scatter"].transpose(*dims, ...).values.astype(np.float64)
    diagonal = np.einsum("...ii->...i", scatter)
    per_block = Sums(
        count,
        mean[..., first],
        mean[..., second],
        scatter[..., first[:, None], second[None, :]],
        diagonal[..., first],
        diagonal[..., second],
    )
    return per_block.joined()  # the blocks of a chain join as chains do


def _places(sweep: xr.Dataset, name: str) -> np.ndarray:
    start = 0
    for feature, shape in sweep.attrs["features"]:
        size = int(np.prod(shape))
        if feature in (name, PROBE + name):
            return np.arange(start, start + size)
        start += size
    raise ValueError(f"the sweep reduced no {name!r}.")


def _cleared(sums: Sums, usable: np.ndarray) -> Sums:
    """Chains that broke count nothing."""
    return Sums(
        np.where(usable, sums.count, 0),
        *(np.where(usable.reshape(*usable.shape, *[1] * (v.ndim - 3)), v, 0) for v in sums[1:]),
    )


def _shift_sums(
    sweep: xr.Dataset, probe: str, reference: str, init_loss: float | None, num_burnin_steps: int | None
) -> Sums:
    """Moments of a = L - L(w*) and b = ell - L, which are linear in the losses that the sweep has moments of."""
    across = _sums(sweep, reference, probe, num_burnin_steps)
    within = _sums(sweep, reference, reference, num_burnin_steps)
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
