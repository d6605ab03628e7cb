"""R-hat and effective sample sizes of many groups of chains at once (Vehtari et al. 2021, arXiv 1903.08008).

What arviz-stats measures of one group after another (a test compares the two), but each group is sorted once for both
its ranks and its quantiles, normal scores come from a table, and all chains share one inverse transform.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft
import scipy.special
from jaxtyping import Bool, Float

TAILS = (0.05, 0.95)
"""Quantiles whose effective sample sizes make that of the tails."""
AT_ONCE = 2**17
"""Draws that are looked at in one go, so that they stay in the caches."""

Chains = Float[np.ndarray, "group chain draw"]
Groups = Float[np.ndarray, " group"]


def convergence(traces: Chains) -> dict[str, Groups]:
    """Rank-normalised split R-hat, bulk and tail ESS, and the Monte-Carlo error of the mean, of each group.

    Args:
        traces: finite values, at least 4 draws, no group constant.

    Returns:
        `rhat` (NaN for a single chain), `ess_bulk`, `ess_tail` (draws) and `mcse` (unit of the traces).
    """
    step = max(AT_ONCE // max(traces[0].size, 1), 1)
    parts = [_convergence(traces[start : start + step]) for start in range(0, len(traces), step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _convergence(traces: Chains) -> dict[str, Groups]:
    groups, chains, draws = traces.shape
    half = draws // 2
    split = _halves(traces)
    order = np.argsort(split.reshape(groups, -1), axis=1)
    ordered = np.take_along_axis(split.reshape(groups, -1), order, axis=1)
    ranked = _scores(ordered, order).reshape(split.shape)
    rhat = np.full(groups, np.nan)
    if chains > 1:
        rhat = np.maximum(_rhat(ranked), _rhat(_folded_scores(ordered, order).reshape(split.shape)))
    # The draw in the middle of an odd number is in no half.
    everything = ordered if draws == 2 * half else np.sort(traces.reshape(groups, -1), axis=1)
    tails = [_ess(_halves(traces <= _quantile(everything, share)[:, None, None])) for share in TAILS]
    spread = np.std(traces.reshape(groups, -1), axis=1, ddof=1)
    return {
        "rhat": rhat,
        "ess_bulk": _ess(ranked),
        "ess_tail": np.minimum(*tails),
        "mcse": spread / np.sqrt(_ess(split)),
    }


def _halves(traces: Chains | Bool[np.ndarray, "group chain draw"]) -> Chains:
    """First and last half of each chain as chains of their own."""
    half = traces.shape[-1] // 2
    return np.concatenate([traces[..., :half], traces[..., -half:]], axis=1, dtype=np.float64)


def _quantile(ordered: Float[np.ndarray, "group value"], share: float) -> Groups:
    """Quantile of sorted values, linear between the two that are next to it."""
    place = (ordered.shape[1] - 1) * share
    below = int(place)
    return np.quantile(ordered[:, below : below + 2], place - below, axis=1)


@functools.lru_cache(maxsize=4)
def _score_table(size: int) -> Float[np.ndarray, " twice_rank"]:
    """Normal scores of the ranks 0, 1/2, 1, ... of so many values (eq. 14)."""
    return scipy.special.ndtri((np.arange(2 * size + 1) / 2 - 3 / 8) / (size + 1 / 4))


def _scores(ordered: np.ndarray, order: np.ndarray) -> Float[np.ndarray, "group value"]:
    """Normal scores of the ranks, ties at their mean rank, in the order before sorting."""
    table, scores = _score_table(ordered.shape[1]), np.empty(ordered.shape)
    for row, places, out in zip(ordered, order, scores, strict=True):
        known, same = table[2::2], row[1:] == row[:-1]
        if same.any():
            edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
            first, last = edges[::2], edges[1::2]
            known, tied = known.copy(), np.append(same, False)
            tied[1:] |= same
            known[tied] = np.repeat(table[first + last + 2], last - first + 1)
        out[places] = known
    return scores


def _folded_scores(ordered: np.ndarray, order: np.ndarray) -> Float[np.ndarray, "group value"]:
    """Normal scores of the distances from the median."""
    middle = ordered.shape[1] // 2
    away = np.abs(ordered - ordered[:, middle - 1 : middle + 1].mean(1, keepdims=True))
    # Below the median distances fall, above it they rise: two runs, which a stable sort merges in linear time.
    away[:, :middle] = away[:, middle - 1 :: -1]
    order = np.concatenate([order[:, middle - 1 :: -1], order[:, middle:]], axis=1)
    merged = np.argsort(away, axis=1, kind="stable")
    return _scores(np.take_along_axis(away, merged, axis=1), np.take_along_axis(order, merged, axis=1))


def _rhat(chains: Chains) -> Groups:
    """Between-chain against within-chain variance (eq. 3)."""
    draws = chains.shape[-1]
    between, within = chains.mean(-1).var(-1, ddof=1), chains.var(-1, ddof=1).mean(-1)
    return np.sqrt((draws * between / within + draws - 1) / draws)


def _ess(chains: Chains) -> Groups:
    """Effective sample size by Geyer's initial monotone sequence of pairs of autocorrelations (eq. 10 and 11)."""
    groups, count, draws = chains.shape
    covariance = _autocovariance(chains)
    within = covariance[:, :1] * draws / (draws - 1)
    total = covariance[:, :1] + (chains.mean(-1).var(-1, ddof=1)[:, None] if count > 1 else 0)
    rho = 1 - (within - covariance) / total
    rho[:, 0] = 1
    pairs = rho[:, 0 : draws - draws % 2 : 2] + rho[:, 1::2]
    # The sequence ends at the first pair that is not positive, at the latest 3 draws before the end.
    ended = pairs <= 0
    ended[:, max((draws - 3) // 2, 0) :] = True
    last, rows = ended.argmax(1), np.arange(groups)
    falling = np.minimum.accumulate(pairs, axis=1).cumsum(1)
    known = np.where(last > 0, falling[rows, last - 1], 0)
    half_pair = rho[rows, 2 * last]
    half_pair = np.where((half_pair > 0) | (pairs[rows, last] >= 0), half_pair, 0)
    size = count * draws
    found = size / np.maximum(2 * known + half_pair - 1, 1 / np.log10(size))
    # A tail that no draw is in has nothing to be correlated.
    return np.where(np.ptp(chains, axis=(1, 2)) < np.finfo(float).resolution, size, found)


def _autocovariance(chains: Chains) -> Float[np.ndarray, "group lag"]:
    """Mean autocovariance of the chains of each group."""
    draws = chains.shape[-1]
    length = scipy.fft.next_fast_len(2 * draws, real=True)
    waves = scipy.fft.rfft(chains - chains.mean(-1, keepdims=True), length, axis=-1, overwrite_x=True)
    power = (np.square(waves.real) + np.square(waves.imag)).mean(1)
    return scipy.fft.irfft(power, length, axis=-1)[:, :draws] / draws
