"""When what is learned is learned, and which of the targets of the language experiment are met."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from llcjax.pipelines.experiment_results import Found, Row
from llcjax.pipelines.language_parts import MAIN

ORDER = (
    ("bigrams", "positions"),
    ("previous-token head", "prefix-matching head"),
    ("prefix-matching head", "in-context learning"),
)
"""Pairs of events, the earlier first (arXiv 2402.02364, sections 4 and 5)."""


def heads(metrics: xr.Dataset, score: str) -> xr.DataArray:
    """The scores `previous_token` or `prefix_matching` of all heads, `(head, checkpoint)`, named as layer:head."""
    names = [str(name) for name in metrics.data_vars if str(name).startswith(f"{score}_")]
    labels = [name.removeprefix(f"{score}_").replace("_", ":") for name in names]
    return xr.DataArray(
        np.stack([metrics[name].values for name in names]),
        dims=("head", "checkpoint"),
        coords={"head": labels, "checkpoint": metrics["checkpoint"].values},
    )


def best_head(metrics: xr.Dataset, score: str) -> tuple[str, np.ndarray]:
    """The head with the largest score over training, and the score of the best head at every checkpoint."""
    scores = heads(metrics, score)
    best = int(np.argmax(scores.values.max(1)))
    return str(scores["head"].values[best]), scores.values.max(0)


def events(metrics: xr.Dataset) -> list[Row]:
    """One row an event: the step at which it happens, and the size of the change.

    `bigrams` is where the model is nearest to the bigram table. The others are where a curve first has half of its
    largest change since the first checkpoint: the loss that ablating positions costs, the scores of the best head at
    each checkpoint (`head` names the best over training), and the (falling) in-context learning score.
    """
    steps = metrics["checkpoint"].values
    bigram = metrics["bigram_score"].values
    icl = next(str(name) for name in metrics.data_vars if str(name).startswith("icl_"))
    curves = {
        "positions": ("", (metrics["test_loss_no_positions"] - metrics["test_loss"]).values),
        "previous-token head": best_head(metrics, "previous_token"),
        "prefix-matching head": best_head(metrics, "prefix_matching"),
        "in-context learning": ("", -metrics[icl].values),
    }
    floor = float(bigram.min() - metrics.attrs["bigram_floor"])
    rows: list[Row] = [{"event": "bigrams", "head": "", "step": int(steps[bigram.argmin()]), "change": floor}]
    for event, (head, values) in curves.items():
        change = values - values[0]
        half = int(np.argmax(change >= change.max() / 2))
        rows.append({"event": event, "head": head, "step": int(steps[half]), "change": float(change.max())})
    return rows


def targets(found: list[Found]) -> Iterator[Row]:
    """What the model and its control must show, at the first seed of each."""
    main = next((one for one in found if one.part == MAIN), None)
    control = next((one for one in found if one.part == "one_layer"), None)
    if main is None:
        return
    metrics = main.measured.behaviour
    rows = {row["event"]: row for row in events(metrics)}
    inf = float("inf")
    if control is not None and main.measured.repeats is not None:
        two, one = (float(part.measured.repeats["repeat_loss"][-1]) for part in (main, control))
        known = main.measured.repeats.attrs["unigram_loss"]
        yield _target("one layer less two layers on repeats, nats", one - two, 0.3, inf)
        yield _target("one layer less in-context unigrams on repeats, nats", one - known, 0.0, inf)
        yield _target("in-context unigrams less two layers on repeats, nats", known - two, 0.0, inf)
    if control is not None:
        prefix = float(best_head(control.measured.behaviour, "prefix_matching")[1].max())
        yield _target("one layer: largest prefix-matching score", prefix, 0.0, 0.1)
    for score in ("prefix_matching", "previous_token"):
        head, values = best_head(metrics, score)
        yield _target(
            f"two layers: largest {score.replace('_', '-')} score (head {head})", float(values.max()), 0.2, inf
        )
    yield _target("bigram score above its floor at its minimum, nats", rows["bigrams"]["change"], 0.0, 0.5)
    for earlier, later in ORDER:
        gap = rows[later]["step"] - rows[earlier]["step"]
        yield _target(f"steps from {earlier} to {later}", float(gap), 0.0, inf)


def _target(name: str, value: float, lower: float, upper: float) -> Row:
    met = "yes" if lower <= value <= upper else "no"
    return {"target": name, "value": value, "lower": lower, "upper": upper, "met": met}


def falls(found: list[Found]) -> list[Row]:
    """Stages in which the LLC falls while the loss falls (type B), of every part: the answer may be none."""
    rows = []
    for one in found:
        stages = one.stages("gp")
        if isinstance(stages, str):
            rows.append({"part": one.part, "seed": one.seed, "stages": stages, "falls": ""})
            continue
        table = stages.table()
        down = [row for row in table if row["kind"] == "B" and (row["delta_loss"] is None or row["delta_loss"] < 0)]
        listed = "; ".join(
            f"{row['name']} to {row['end']:,.0f}: {row['delta_value']:+.3g} +- {row['delta_value_stderr']:.2g}"
            for row in down
        )
        rows.append({"part": one.part, "seed": one.seed, "stages": str(len(table)), "falls": listed or "none"})
    return rows
