"""The store that a sweep asks for: what identifies it, its facts and coordinates, and room for every array."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llcjax import trees
from llcjax.baseline import write_init_losses, write_prior_losses, write_probe_losses
from llcjax.config import array_digest, as_dict, fingerprint
from llcjax.damage import redo_broken
from llcjax.job import Job, blank_losses, launch_inputs
from llcjax.observables import feature_table, measure
from llcjax.provenance import provenance
from llcjax.runs import Recorded
from llcjax.store import SweepStore, is_sweep
from llcjax.types import CHAIN, DRAW, GROUP, Params
from llcjax.writer import MOMENT, named_arrays


def prepared_store(
    job: Job,
    path: Path | None,
    chance: float | None,
    attrs: dict[str, Any] | None,
    *,
    mend: bool = False,
    save_every_seconds: float = 20.0,
    progress: bool = False,
) -> SweepStore:
    """Opens or creates the store of a sweep, with all that is not sampled.

    Args:
        job: the checked sweep.
        path: folder of the store; None keeps it in memory.
        chance: loss of a trivial predictor.
        attrs: further facts.
        mend: forgets what is broken in a store that is there, for the sweep to draw again.
        save_every_seconds: least time between two saves of losses over all examples.
        progress: shows a progress bar for them.

    Raises:
        ValueError: the folder holds another sweep or something else.
    """
    store = _open_or_create(job, path, chance, attrs, mend)
    write_init_losses(job, store, save_every_seconds, progress)
    write_prior_losses(job, store)
    write_probe_losses(job, store)
    return store


def _identity(job: Job, recorded: list[str]) -> str:
    """What makes two sweeps the same sweep: bank, data and every setting that changes the numbers."""
    free = as_dict(dataclasses.replace(job.config, draws_per_chunk=1, runs_per_launch=None))
    del free["microbatch_size"], free["chains_at_once"], free["devices_per_run"]  # how, not what
    if not job.config.step_size_decay:
        free = {name: value for name, value in free.items() if not name.startswith("step_size_decay")}
    if job.config.reduce == "none":
        del free["reduce"], free["num_blocks"]
    data = [array_digest(leaf) for leaf in jax.tree.leaves(job.source.arrays)]
    seed = jax.random.key_data(job.base).tolist()
    mask = [np.packbits(keep).tobytes().hex() for keep in jax.tree.leaves(job.mask)]
    parts: tuple[Any, ...] = (free, job.bank.fingerprint(), data, seed, mask, recorded)
    if job.components is not None:
        tables = [[table.leaves, array_digest(table.index)] for table in job.components.tables]
        parts += ([job.components.names, job.components.sizes, tables],)
    if job.probes:
        parts += ([array_digest(leaf) for leaf in jax.tree.leaves(job.probes)],)
    return fingerprint(*parts)


def _open_or_create(
    job: Job, path: Path | None, chance: float | None, attrs: dict[str, Any] | None, mend: bool
) -> SweepStore:
    arrays = named_arrays(_one_chunk_of_two_runs(job))
    identity = _identity(job, list(arrays))
    if path is not None and is_sweep(path):
        store = SweepStore.reopen(path)
        if store.group.attrs["fingerprint"] != identity:
            raise ValueError(
                f"out={path} holds a sweep of another config, bank or data; choose another folder or remove it."
            )
        if mend:
            _put_coords(job, store, arrays)
            redo_broken(store)
        if chance is not None and store.group.attrs.get("chance") != chance:
            store.group.attrs["chance"] = float(chance)
        return store
    if path is not None and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise ValueError(f"out={path} exists and is no store of a sweep; choose another folder.")
    config = job.config
    facts: dict[str, Any] = {
        "config": json.dumps(as_dict(config)),
        "bank": json.dumps(job.bank.config),
        "provenance": json.dumps(provenance()),
        "fingerprint": identity,
        "key": jax.random.key_data(job.base).tolist(),
        "num_burnin_steps": config.num_burnin_steps,
        "num_params": trees.num_params(job.bank.checkpoint(0)) if job.mask is None else _num_sampled(job.mask),
        "wall_seconds": 0.0,
        **(attrs or {}),
    }
    if job.source.num_examples is not None:
        facts["num_examples"] = job.source.num_examples
    if chance is not None:
        facts["chance"] = float(chance)
    if job.components is not None:
        facts["components"] = list(job.components.names)
    if job.config.reduce != "none":
        facts["features"] = _features(job)
    store = SweepStore.create(path, coords=_coords(job, arrays), attrs=facts)
    _allocate(job, store, arrays)
    return store.publish()


def _features(job: Job) -> list[tuple[str, list[int]]]:
    """Names and shapes of what is reduced, without computing it."""
    per_position = job.per_position
    shapes = jax.eval_shape(
        lambda params: measure(job.observe, job.loss_fn, params, job.probes, per_position=per_position),
        job.bank.checkpoint(0),
    )
    return feature_table(shapes)


def _num_sampled(mask: Params) -> int:
    return sum(int(keep.sum()) for keep in jax.tree.leaves(mask))


def _put_coords(job: Job, store: SweepStore, arrays: dict[str, Any]) -> None:
    """Writes the coordinates that cannot be read; the sweep knows what they are."""
    for name, (dims, values) in _coords(job, arrays).items():
        if not store.holds(name):
            store.put(name, dims, values)


def _coords(job: Job, arrays: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    settings = job.settings
    hyper = {
        name: (("setting",), np.array([getattr(setting, name) for setting in settings]))
        for name in ("n_beta", "localization", "step_size")
    }
    if job.config.reduce != "none":
        starts = np.arange(0, job.num_recorded, job.draws_per_chunk) * job.config.num_steps_between_draws
        hyper["block"] = (("block",), starts)
    positions = next((leaf.shape[2] for name, leaf in arrays.items() if name.endswith("_position")), None)
    if positions is not None:
        hyper["position"] = (("position",), np.arange(1, positions + 1))
    if job.components is not None:
        hyper["component"] = (("setting",), job.component_of_setting)
        hyper["num_params"] = (("setting",), np.array(job.components.sizes)[job.component_of_setting])
    return {
        "checkpoint": (("checkpoint",), job.bank.steps),
        "setting": (("setting",), np.arange(len(settings))),
        "chain": (("chain",), np.arange(job.config.num_chains)),
        "draw": (("draw",), np.arange(job.num_recorded) * job.config.num_steps_between_draws),
        **hyper,
    }


def _allocate(job: Job, store: SweepStore, arrays: dict[str, Any]) -> None:
    """Makes room for everything that a chunk returns; `arrays` tells the shapes for two runs and one draw."""
    groups = (len(job.bank), len(job.settings))
    chains, draws = job.config.num_chains, job.num_recorded
    block = job.draws_per_chunk
    for name, leaf in arrays.items():
        if name.startswith(MOMENT):
            _allocate_moments(store, name, leaf, groups, chains, -(-draws // block))
            continue
        extra = leaf.shape[2:]
        dims = (*DRAW, *_extra_dims(name, len(extra)))
        shape, chunks = (*groups, chains, draws, *extra), (1, 1, chains, block, *extra)
        fill = float("nan") if np.issubdtype(leaf.dtype, np.floating) else 0
        store.allocate(name, dims, shape, chunks, str(leaf.dtype), fill)
    store.allocate("first_nonfinite_step", CHAIN, (*groups, chains), (1, 1, chains), "int32", -1)
    store.allocate("num_draws_done", GROUP, groups, (1, 1), "int32", 0)


def _allocate_moments(
    store: SweepStore, name: str, leaf: Any, groups: tuple[int, int], chains: int, blocks: int
) -> None:
    """Makes room for the moments of each block; a chunk of the store is one block."""
    extra = leaf.shape[1:]
    dims = (*CHAIN, "block", *("feature", "feature_other")[: len(extra)])
    store.allocate(name, dims, (*groups, chains, blocks, *extra), (1, 1, chains, 1, *extra), "float32", float("nan"))


def _extra_dims(name: str, count: int) -> tuple[str, ...]:
    if name.endswith("_position"):
        return ("position",)
    return tuple(f"{name}_{axis}" for axis in range(count))


def _one_chunk_of_two_runs(job: Job) -> Recorded:
    """Shapes of a tiny chunk, traced and not computed."""
    tiny = job.program(1)
    anchors, runs, roots = launch_inputs(job, np.zeros(1, np.int64), 2)

    def traced(anchors: Params, runs: Any, part: Any, *rest: Any) -> Recorded:
        states = jax.eval_shape(tiny.runs.start, anchors, runs, part)
        return jax.eval_shape(tiny.runs.advance, states, anchors, runs, part, *rest)[1]

    losses = blank_losses(job, tiny, anchors, job.source.arrays)
    shared = (roots, job.source.arrays, job.watch, losses, jnp.int32(0))
    return tiny.known("recorded", traced, anchors, runs, job.part(0), *shared)
