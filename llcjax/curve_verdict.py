"""What a whole LLC curve is worth: its verdicts in one sentence, and the stretch of it that copies the loss."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import xarray as xr

from llcjax import checks
from llcjax.verdicts import VERDICTS, Verdict

GOOD, FAIR = 0.9, 0.5
"""Shares of estimates that are ok from which a curve is good, and mixed."""


class LossCopy(NamedTuple):
    """A stretch of an LLC curve that is the loss turned upside down: LLC = n_beta * (level - loss)."""

    start: int
    """First training step."""
    end: int
    """Last training step."""
    slope: float
    """Of the LLC on the loss; -n_beta where the mean sampled loss does not depend on the checkpoint."""
    correlation: float
    level: float
    """The mean sampled loss there."""

    @property
    def sentence(self) -> str:
        """What this means."""
        return (
            f"From step {self.start:,} to {self.end:,} the LLC is the loss turned upside down: slope {self.slope:.4g} "
            f"on the loss, correlation {self.correlation:.3f}, mean sampled loss {self.level:.3g} throughout. "
            "There the curve carries no information beyond the loss."
        )


def loss_copy(curve: xr.Dataset, *, tolerance: float = 0.03) -> LossCopy | None:
    """Finds the longest stretch of a curve that carries no information beyond the loss.

    The LLC is n_beta * (E[L(w)] - L(w*)). Where the chains forget the checkpoint, E[L(w)] is the same at all of
    them, and the LLC falls on a line of slope -n_beta over the loss.

    Args:
        curve: estimates at one setting, dimension `checkpoint`.
        tolerance: largest range of the mean sampled loss, as a share of the range of the loss; the slope of the LLC
            on the loss may be off -n_beta by twice that.

    Returns:
        The stretch over which the loss changes most, or None: it must hold at least 5 checkpoints and a tenth of the
        range of the loss.
    """
    checks.number("tolerance", tolerance)
    checks.instance("curve", curve, xr.Dataset, "what llcjax.estimates returns, at one setting")
    needed = ("llc", "init_loss", "mean_loss", "n_beta")
    if lacking := [name for name in needed if name not in curve or "setting" in curve[name].dims]:
        raise ValueError(f"curve has no {lacking[0]} of one setting; give the estimates of one, .isel(setting=0).")
    curve = curve.isel(checkpoint=np.isfinite(curve["llc"].values)).sortby("checkpoint")
    loss, llc, n_beta = curve["init_loss"].values, curve["llc"].values, float(curve["n_beta"])
    sampled = curve["mean_loss"].values
    if loss.size < 5 or np.ptp(loss) == 0 or n_beta == 0:
        return None
    best, found = np.ptp(loss) / 10, None
    for start in range(loss.size - 4):
        ranges = _range_so_far(loss[start:])
        fitting = (ranges > best) & (_range_so_far(sampled[start:]) <= tolerance * ranges)
        fitting &= np.abs(_slope_so_far(loss[start:], llc[start:]) / n_beta + 1) <= 2 * tolerance
        longest = np.flatnonzero(fitting[4:])
        if longest.size:
            end = 4 + longest[-1]
            best, found = ranges[end], slice(start, start + end + 1)
    if found is None:
        return None
    slope, correlation = _line(loss[found], llc[found])
    steps = curve["checkpoint"].values[found]
    level = float(np.mean(sampled[found]))
    return LossCopy(int(steps[0]), int(steps[-1]), slope, correlation, level)


def _range_so_far(values: np.ndarray) -> np.ndarray:
    """Range of the values up to each place."""
    return np.maximum.accumulate(values) - np.minimum.accumulate(values)


def _slope_so_far(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slope of y on x up to each place; NaN where x did not change."""
    x, y, count = x - x.mean(), y - y.mean(), np.arange(1, x.size + 1)
    products, squares = (np.cumsum(x * one) - x.cumsum() * one.cumsum() / count for one in (y, x))
    return np.divide(products, squares, out=np.full(x.size, np.nan), where=squares > 0)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and correlation of y on x."""
    dx, dy = x - x.mean(), y - y.mean()
    scale = np.sqrt((dx @ dx) * (dy @ dy))
    return float(dx @ dy / (dx @ dx)), float(dx @ dy / scale) if scale > 0 else 0.0


def curve_verdict(curve: xr.Dataset) -> Verdict:
    """What a curve of estimates is worth as a whole.

    Args:
        curve: estimates at one setting, dimension `checkpoint`.

    Returns:
        A name and a sentence. `good`: nine in ten estimates are ok, and no stretch of the curve copies the loss
        (`loss_copy`). `mixed`: half of them are ok. `poor`: fewer.
    """
    checks.instance("curve", curve, xr.Dataset, "what llcjax.estimates returns, at one setting")
    if "verdict" not in curve:
        raise ValueError("curve has no verdict; give what llcjax.estimates returns, at one setting.")
    curve = curve.sortby("checkpoint")
    verdicts = curve["verdict"].values.astype(str)
    ok, copied = verdicts == "ok", loss_copy(curve)
    share = ok.mean()
    name = "good" if share >= GOOD and copied is None else "mixed" if share >= FAIR else "poor"
    return Verdict(
        name, f"{_counted(verdicts)}{_unbroken(curve['checkpoint'].values, ok)}. {_beyond_loss(curve, copied)}"
    )


def _counted(verdicts: np.ndarray) -> str:
    """How many estimates are ok, and what the others are, the mildest first."""
    counts = Counter(verdicts.tolist())
    total, num_ok = len(verdicts), counts.pop("ok", 0)
    if not counts:
        return f"All {total} estimates are ok" if total > 1 else "The estimate is ok"
    known = [name for name in VERDICTS if name in counts] + sorted(set(counts) - set(VERDICTS))
    others = ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in known)
    return f"{num_ok} of {total} estimates {'is' if num_ok == 1 else 'are'} ok ({others})"


def _unbroken(steps: np.ndarray, ok: np.ndarray) -> str:
    """The longest run of checkpoints that are ok, where there are others."""
    if ok.all() or ok.sum() < 2:
        return ""
    edges = np.flatnonzero(np.diff(np.r_[0, ok.astype(int), 0]))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    first, last = steps[starts[longest]], steps[stops[longest] - 1]
    return f", without a gap from step {first:,} to {last:,}"


def _beyond_loss(curve: xr.Dataset, copied: LossCopy | None) -> str:
    """Where the curve tells more than the loss."""
    steps = curve["checkpoint"].values
    if copied is None:
        return "No long stretch of the curve is the loss turned upside down."
    if copied.end == steps[-1] and copied.start == steps[0]:
        return "The whole curve is the loss turned upside down and carries no information beyond it."
    if copied.start == steps[0]:
        after = steps[steps > copied.end][0]
        return f"The curve carries information beyond the loss from step {after:,} on only."
    return f"From step {copied.start:,} to {copied.end:,} the curve carries no information beyond the loss."
