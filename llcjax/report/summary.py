"""The sentences at the top of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from llcjax.curve_verdict import curve_verdict
from llcjax.report.formats import plus_minus
from llcjax.selection import one_setting, setting_label, trusted
from llcjax.verdicts import FREE, LOST, free_share, is_trained, lift

if TYPE_CHECKING:
    from llcjax.stages import Stages


def summary_lines(estimates: xr.Dataset, stages: Stages | None = None, *, setting: int = 0) -> list[tuple[str, str]]:
    """Return the answers at the top of the page as (question, sentence) pairs in plain text."""
    curve = one_setting(estimates, setting)
    held = _held_sentence(curve)
    return [
        ("Can I trust it?", curve_verdict(curve).sentence),
        ("What is the curve?", curve_sentence(curve)),
        ("Where are the stages?", _stage_sentence(stages)),
        ("Did the sampler stay local?", _basin_sentence(curve)),
        *([("Does the loss hold the chains?", held)] if held else []),
    ]


def subtitle(sweep: xr.Dataset | None, curve: xr.Dataset) -> str:
    """Return the size of the sweep and its hyperparameters in a line."""
    sizes = {"checkpoint": curve.sizes["checkpoint"]}
    if sweep is not None:
        sizes |= {dim: sweep.sizes[dim] for dim in ("chain", "draw") if dim in sweep.sizes}
    parts = [f"{size} {dim}" + "s" * (size != 1) for dim, size in sizes.items()]
    return ", ".join([*parts, setting_label(curve)])


def curve_sentence(curve: xr.Dataset) -> str:
    """Return where the LLC starts, peaks and ends."""
    finite, fine = np.isfinite(curve["llc"].values), trusted(curve)
    if not finite.any():
        return "No checkpoint has a finite LLC: the verdicts below say what to change."
    known = curve.isel(checkpoint=fine)
    all_ok = (known["verdict"].values.astype(str) == "ok").all()
    subject = "The LLC" if all_ok else "Most estimates are not ok; taken at face value, the LLC"
    top, end = int(np.argmax(known["llc"].values)), known.sizes["checkpoint"] - 1
    places = [_llc_at(known, 0)] if top > 0 else []
    places.append(("a maximum of " if end else "") + _llc_at(known, top))
    places += [_llc_at(known, end)] if top < end else []
    verb = "is" if end == 0 else "goes from" if top > 0 else "starts at"
    note = ", over the checkpoints that are ok" if all_ok and not fine.all() else ""
    path = ", then ".join(places).replace(", then", " to", int(top > 0))
    return f"{subject} {verb} {path}{note} (± one standard error)."


def _llc_at(curve: xr.Dataset, index: int) -> str:
    one = curve.isel(checkpoint=index)
    return f"{plus_minus(float(one['llc']), float(one['llc_stderr']))} at step {int(one['checkpoint']):,}"


def _stage_sentence(stages: Stages | None) -> str:
    if stages is None:
        return "Stages were not looked for."
    if len(stages.stages) < 2:
        return "No boundary was found: the curve is one stage."
    kinds = {"A": "type A", "B": "type B", "-": "neither"}
    parts = [
        f"{stage.name} ({kinds.get(stage.kind, stage.kind)}) up to {round(stage.end):,}" for stage in stages.stages
    ]
    return f"{len(parts)} stages, by steps at which they end: {', '.join(parts)}."


def _held_sentence(curve: xr.Dataset) -> str | None:
    """Return how the chains differ from draws of the localisation prior, where such a control was made."""
    if "prior_loss" not in curve:
        return None
    share = free_share(curve)
    share = share[np.isfinite(share.values)]
    if share.size == 0:
        return "Draws from the localisation prior have no higher loss than a trained w*, so this cannot be told."
    free = share.values >= FREE
    middle = (
        f"at the median checkpoint their loss rises by {np.median(share.values):.0%} of what draws from the "
        "localisation prior alone do"
    )
    if not free.any():
        return f"Yes: {middle}, and nowhere by {FREE:.0%} or more."
    worst = share[int(np.argmax(share.values))]
    where = f"at {free.sum()} of {free.size} trained checkpoints by {FREE:.0%} or more"
    most = f"most at step {int(worst['checkpoint']):,}, {float(worst):.0%}"
    answer = "Hardly" if np.median(share.values) >= FREE else "In part"
    return (
        f"{answer}: {middle}, and {where} ({most}). There the LLC is little but n_beta times the rise of the loss "
        "under Gaussian noise of the localisation's width (a sharpness at that scale); raise n_beta or lower "
        "localization."
    )


def _basin_sentence(curve: xr.Dataset) -> str:
    chance, name = curve.attrs.get("chance"), curve.attrs.get("chance_name", "zero predictor")
    if chance is None:
        return f"The loss of the {name} is not known, so this cannot be told from the loss."
    drawn, start, name = curve["mean_loss"].values, curve["init_loss"].values, f"{name} (loss {chance:.4g})"
    learned = np.isfinite(drawn) & is_trained(start, float(chance))
    if not learned.any():
        return f"No checkpoint beats the {name} by a tenth, so the question is open."
    risen = lift(start[learned], drawn[learned], float(chance))
    share = np.median(risen)
    middle = f"at the median checkpoint, sampling undid {share:.0%} of the network's lead over it"
    middle = middle if share > 0 else "at the median checkpoint, the draws have lower loss than w*"
    steps = curve["checkpoint"].values[learned][risen > LOST]
    if not steps.size:
        return f"Yes, by this test: wherever w* clearly beats the {name}, the draws keep half of that lead; {middle}."
    return (
        f"Not everywhere: at {steps.size} of the {risen.size} checkpoints that clearly beat the {name}, "
        f"the draws lose more than half of that lead (between steps {steps[0]:,} and {steps[-1]:,}), so the LLC there "
        f"mostly restates the loss; {middle}."
    )
