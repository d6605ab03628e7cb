"""What to show of a dataset: one setting of the estimates with its error bars, the checkpoints to believe or to
look at, the metrics in a fixed order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import xarray as xr

from llcjax.verdicts import VERDICTS


def one_setting(estimates: xr.Dataset, setting: int) -> xr.Dataset:
    """Return the estimates at one setting, sorted by training step.

    Raises:
        ValueError: there is no such setting.
    """
    if not 0 <= setting < estimates.sizes["setting"]:
        raise ValueError(f"setting={setting} is out of range: choose from 0 to {estimates.sizes['setting'] - 1}")
    return estimates.isel(setting=setting).sortby("checkpoint")


def setting_label(curve: xr.Dataset) -> str:
    """Return the hyperparameters of one setting in a few words."""
    names = {"n_beta": "n_beta", "localization": "localization", "step_size": "step size"}
    label = ", ".join(f"{label} {float(curve[name]):.4g}" for name, label in names.items() if name in curve.coords)
    return f"{curve['component'].item()}, {label}" if "component" in curve.coords else label


def interval(curve: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% interval of the LLC: ``llc_lower`` and ``llc_upper`` if present, else 1.96 s.e."""
    if "llc_lower" in curve and "llc_upper" in curve:
        return curve["llc_lower"].values, curve["llc_upper"].values
    half = 1.96 * curve["llc_stderr"].values
    return curve["llc"].values - half, curve["llc"].values + half


def severity(verdict: str) -> int:
    """Return how bad a verdict is: 0 for "ok", larger for worse, largest for one that is not known."""
    return VERDICTS.index(verdict) if verdict in VERDICTS else len(VERDICTS)


def verdict_counts(curve: xr.Dataset) -> dict[str, int]:
    """Return how many checkpoints have each verdict, the best verdict first."""
    counts = Counter(str(verdict) for verdict in curve["verdict"].values.ravel())
    return {verdict: counts[verdict] for verdict in sorted(counts, key=severity)}


def trusted(curve: xr.Dataset, name: str = "llc", verdicts: tuple[str, ...] = ("ok",)) -> np.ndarray:
    """Return which values of ``name`` are finite with one of the verdicts; all finite ones if those are few."""
    finite = np.isfinite(curve[name].values)
    fine = finite & np.isin(curve["verdict"].values.astype(str), verdicts)
    return fine if 2 * fine.sum() >= finite.sum() else finite


def choose_checkpoints(curve: xr.Dataset) -> dict[int, str]:
    """Return {step: why it is worth a look}, sorted: first, middle, last, largest LLC and the worst verdict.

    Args:
        curve: the estimates at one setting, sorted by checkpoint.
    """
    steps = [int(step) for step in curve["checkpoint"].values]
    verdicts = [str(verdict) for verdict in curve["verdict"].values]
    worst = max(range(len(steps)), key=lambda index: severity(verdicts[index]))
    reasons: dict[int, list[str]] = {steps[0]: ["first"], steps[len(steps) // 2]: [], steps[-1]: ["last"]}
    if np.isfinite(curve["llc"].values).any():
        largest = int(np.argmax(np.where(trusted(curve), curve["llc"].values, -np.inf)))
        reasons.setdefault(steps[largest], []).append("largest LLC")
    reasons.setdefault(steps[worst], [])
    remarks = {step: [*reason, verdicts[steps.index(step)].replace("_", " ")] for step, reason in reasons.items()}
    return {step: ", ".join(remarks[step]) for step in sorted(remarks)}


def checkpoint_variables(metrics: xr.Dataset) -> list[xr.DataArray]:
    """Return the variables along ``checkpoint``, the test loss first, then by name: a store keeps no order."""
    variables = [metrics[name] for name in metrics.data_vars if "checkpoint" in metrics[name].dims]
    return sorted(variables, key=lambda variable: (variable.name != "test_loss", _natural(str(variable.name))))


def _natural(name: str) -> list[str | int]:
    """Return a sorting key that puts ``name_5`` before ``name_10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def checkpoint_columns(variable: xr.DataArray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (label, values of each checkpoint) for every place along the other dimensions, "" if there are none."""
    others = [dim for dim in variable.dims if dim != "checkpoint"]
    values = variable.transpose("checkpoint", *others).values
    labels = [[str(label) for label in variable[dim].values] for dim in others]
    for place in np.ndindex(*values.shape[1:]):
        label = ",".join(names[index] for names, index in zip(labels, place, strict=True))
        yield label, values[(slice(None), *place)]
