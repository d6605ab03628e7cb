"""When what is learned is learned, and which of the targets of the language experiment are met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr
from scipy.ndimage import median_filter

from llcjax.pipelines.experiment_results import Found, Row, StageKey
from llcjax.pipelines.language_parts import CONTROL, MAIN
from llcjax.stages import Stages

ORDER = (
    ("bigrams", "positions"),
    ("previous-token head", "prefix-matching head"),
    ("prefix-matching head", "in-context learning"),
)
"""Pairs of events, the earlier first (arXiv 2402.02364, sections 4 and 5)."""

BEYOND = "in-context learning beyond one layer"
"""The event in which two layers part from the control; where it is known it takes the place of the last one."""


PUBLISHED = {"prefix_matching": 0.079, "previous_token": 0.29}
"""Largest scores of the published model at its last step (its stored metrics; previous-token heads in layer 1)."""


def heads(metrics: xr.Dataset, score: str) -> xr.DataArray:
    """A score of heads, `(head, checkpoint)`, named as layer:head.

    Of `prefix_matching` those of all heads. Of `previous_token` those in layer 1, whose output the heads of layer 2
    compose with to match prefixes; heads of layer 2 that look back serve n-grams, and come long before.
    """
    prefix = {"previous_token": "previous_token_1_", "prefix_matching": "prefix_matching_"}[score]
    names = [str(name) for name in metrics.data_vars if str(name).startswith(prefix)]
    labels = [name.removeprefix(f"{score}_").replace("_", ":") for name in names]
    return xr.DataArray(
        np.stack([metrics[name].values for name in names]),
        dims=("head", "checkpoint"),
        coords={"head": labels, "checkpoint": metrics["checkpoint"].values},
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """A curve of more than 100 checkpoints by its running median over a fiftieth of them; a shorter one as it is.

    Example:
        >>> smoothed(np.array([0.0, 0.0, 9.0])).tolist(), smoothed(np.array([0.0] * 199 + [9.0])).max()
        ([0.0, 0.0, 9.0], np.float64(0.0))
    """
    return median_filter(values, 2 * (len(values) // 100) + 1, mode="mirror")


def best_head(metrics: xr.Dataset, score: str) -> tuple[str, np.ndarray]:
    """The head whose smoothed score is largest over training, and this score at every checkpoint."""
    scores = heads(metrics, score)
    curves = np.stack([smoothed(values) for values in scores.values])
    best = int(np.argmax(curves.max(1)))
    return str(scores["head"].values[best]), curves[best]


def part_of(found: list[Found], part: str) -> Found | None:
    """The first seed of a part, where it is finished."""
    return next((one for one in found if one.part == part), None)


def _in_context(metrics: xr.Dataset) -> xr.DataArray:
    """The in-context learning score, whose name says which tokens it compares."""
    return metrics[next(str(name) for name in metrics.data_vars if str(name).startswith("icl_"))]


def events(metrics: xr.Dataset, control: xr.Dataset | None = None) -> list[Row]:
    """One row an event: the step at which it happens, and the size of the change.

    `bigrams` is where the model is nearest to the bigram table. The others are where a curve first has half of its
    largest change since then (what moves before is how frequent the tokens of these places are): the loss that
    ablating positions costs, the scores of the head that is best over training (`head`), and the (falling) in-context
    learning score. That score counts all use of distant tokens, also what one layer can do; with a control, metrics of
    one layer at the same steps on the same rows, the fall below its score is an event too. Curves are `smoothed` first.
    """
    steps = metrics["checkpoint"].values
    bigram = metrics["bigram_score"].values
    in_context = _in_context(metrics)
    curves = {
        "positions": ("", smoothed((metrics["test_loss_no_positions"] - metrics["test_loss"]).values)),
        "previous-token head": best_head(metrics, "previous_token"),
        "prefix-matching head": best_head(metrics, "prefix_matching"),
        "in-context learning": ("", smoothed(-in_context.values)),
    }
    if control is not None and np.array_equal(control["checkpoint"].values, steps):
        curves[BEYOND] = ("", smoothed((_in_context(control) - in_context).values))
    nearest = int(bigram.argmin())
    above = float(bigram[nearest] - metrics.attrs["bigram_floor"])
    rows: list[Row] = [{"event": "bigrams", "head": "", "step": int(steps[nearest]), "change": above}]
    for event, (head, values) in curves.items():
        change = values[nearest:] - values[nearest]
        half = int(np.argmax(change >= change.max() / 2))
        rows.append({"event": event, "head": head, "step": int(steps[nearest + half]), "change": float(change.max())})
    return rows


def circuit(metrics: xr.Dataset, control: xr.Dataset | None = None) -> dict[str, dict[str, xr.DataArray]]:
    """What shows induction heads as they form: scores of the two best heads, their composition, and what it is for.

    Args:
        metrics: of two layers.
        control: of one layer on the same rows.

    Returns:
        Label of a panel -> name of a line -> its values over checkpoints, for `llcjax.plots.plot_beside`.
    """
    before, after = (best_head(metrics, score)[0] for score in ("previous_token", "prefix_matching"))
    scores = {
        f"{before}, previous token": heads(metrics, "previous_token").sel(head=before),
        f"{after}, prefix matching": heads(metrics, "prefix_matching").sel(head=after),
    }
    if "k_composition" in metrics and after.startswith("2:"):
        pair = {"earlier_head": int(before[2:]) - 1, "later_head": int(after[2:]) - 1}
        scores[f"K-composition of {before} and {after}"] = metrics["k_composition"].isel(pair)
    learned = {"two layers": _in_context(metrics)}
    if control is not None:
        learned["one layer"] = _in_context(control)
    return {
        "scores of heads": scores,
        "in-context\nlearning, nats": learned,
        "weight norm": {"two layers": metrics["weight_norm"]},
    }


def targets(found: list[Found]) -> Iterator[Row]:
    """What the model and its control must show, at the first seed of each."""
    main, control = part_of(found, MAIN), part_of(found, CONTROL)
    if main is None:
        return
    metrics = main.measured.behaviour
    rows = {row["event"]: row for row in events(metrics, None if control is None else control.measured.behaviour)}
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
    for score, published in PUBLISHED.items():
        head, values = best_head(metrics, score)
        name = f"two layers: largest {score.replace('_', '-')} score (head {head})"
        # Where repeats are all there is to learn a head does little else; in text, half of what was published.
        yield _target(name, float(values.max()), published / 2 if main.measured.repeats is None else 0.2, inf)
    yield _target("bigram score above its floor at its minimum, nats", rows["bigrams"]["change"], 0.0, 0.5)
    for earlier, later in ORDER:
        later = BEYOND if later == "in-context learning" and BEYOND in rows else later
        gap = rows[later]["step"] - rows[earlier]["step"]
        yield _target(f"steps from {earlier} to {later}", float(gap), 0.0, inf)


def _target(name: str, value: float, lower: float, upper: float) -> Row:
    met = "yes" if lower <= value <= upper else "no"
    return {"target": name, "value": value, "lower": lower, "upper": upper, "met": met}


def falls(all_of: Mapping[StageKey, Stages | str]) -> list[Row]:
    """Stages in which the LLC falls while the loss falls (type B), of every part: the answer may be none."""
    rows = []
    for (part, seed, setting, method), stages in all_of.items():
        if setting or method != "gp":
            continue
        if isinstance(stages, str):
            rows.append({"part": part, "seed": seed, "stages": stages, "falls": ""})
            continue
        table = stages.table()
        down = [row for row in table if row["kind"] == "B" and (row["delta_loss"] is None or row["delta_loss"] < 0)]
        listed = "; ".join(
            f"{row['name']} to {row['end']:,.0f}: {row['delta_value']:+.3g} +- {row['delta_value_stderr']:.2g}"
            for row in down
        )
        rows.append({"part": part, "seed": seed, "stages": str(len(table)), "falls": listed or "none"})
    return rows
