"""Makes a sweep again from what its store says, and compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xarray as xr

from llcjax import checks
from llcjax.pipelines.experiment_config import PIPELINE, rebuilt
from llcjax.pipelines.experiments import study_of
from llcjax.pipelines.heads import HeadsSweep, sweep_chosen
from llcjax.pipelines.pretrained import PretrainedSweep, sweep_models
from llcjax.store import is_complete, open_sweep
from llcjax.untrusted import reason

COMMANDS = "llcjax run, llcjax sweep EXPERIMENT, llcjax sweep --model and llcjax heads"


def rerun(store: Path | str, out: Path | str, *, retrain: bool = False, progress: bool = False) -> xr.Dataset:
    """Makes the sweep of a store again.

    Args:
        store: folder of a finished sweep of the command line.
        out: folder for the new one; an unfinished rerun there goes on.
        retrain: trains the models again too, instead of taking the checkpoints that were swept.
        progress: shows progress bars.

    Returns:
        The new sweep; `llcjax.comparison.compare_sweeps` compares it with the old one.

    Raises:
        ValueError: the store is not finished, or does not say how to make it again.
    """
    store, out = Path(store), Path(out)
    recipe = _recipe(store)
    if recipe[PIPELINE] == "pretrained":
        return sweep_models(rebuilt(PretrainedSweep, recipe["options"]), out / "sweep", progress=progress)
    if recipe[PIPELINE] == "heads":
        return sweep_chosen(rebuilt(HeadsSweep, recipe["options"]), out / "sweep", progress=progress)
    kind = study_of(recipe).run
    experiment = kind.experiment_from(recipe["options"])
    # Checkpoints that are gone are trained again.
    models = None if retrain else (store / recipe["models"]).resolve()
    held = models is not None and all((models / "banks" / f"seed_{seed}").exists() for seed in experiment.sweep_seeds)
    run = kind(experiment, out, command=f"llcjax rerun {store}", progress=progress, models=models if held else None)
    return run.sweeps()[experiment.sweep_seeds[0]]


def changed_facts(one: xr.Dataset, other: xr.Dataset) -> list[str]:
    """What else is different about two sweeps, a sentence each: inputs, versions, machine."""
    before, now = (json.loads(facts.attrs["provenance"]) for facts in (one, other))
    changes = [
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}."
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if one.attrs["fingerprint"] != other.attrs["fingerprint"]:
        return ["The checkpoints, the data or the settings that went in are not the same.", *changes]
    return changes


def _recipe(store: Path) -> dict[str, Any]:
    facts = open_sweep(store)
    if not is_complete(store):
        raise ValueError(f"{store} is not finished; run the command that made it again, then this one.")
    recipe = facts.attrs.get("rerun")
    if recipe is None:
        raise ValueError(
            f"{store} cannot be made again from itself: it holds config, key and a fingerprint of all that went in; "
            "but the loss function, the checkpoints and the data came from Python. "
            f"Stores of {COMMANDS} can be; here, call llcjax.sweep with the same arguments again and compare with "
            "llcjax.compare_sweeps."
        )
    try:
        found = {"models": ".", **json.loads(recipe)}
        if not (isinstance(found["pipeline"], str) and isinstance(found["options"], dict)):
            raise ValueError("it names no pipeline with options")
        checks.path("models", found["models"])
        return found
    except (TypeError, LookupError, ValueError, RecursionError) as error:
        raise ValueError(f"{store} has a broken recipe for its rerun ({reason(error)}); sweep again.") from error
