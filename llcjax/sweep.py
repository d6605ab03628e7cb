"""The batched, sharded, resumable sweep: every checkpoint x setting x chain as one flat axis of runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from llcjax import _compat, keys, processes, trees
from llcjax.baseline import write_init_losses, write_prior_losses, write_probe_losses
from llcjax.checkpoints import CheckpointBank
from llcjax.components import check_mask, make_slices
from llcjax.config import SweepConfig, array_digest, as_dict, fingerprint
from llcjax.damage import is_whole, redo_broken
from llcjax.data import DataSource, check_batch_size, data_source, example_batch
from llcjax.job import Job, launch_inputs
from llcjax.launch import run_job
from llcjax.observables import check_probes, feature_table, measure
from llcjax.output_folder import only_run, writing_to
from llcjax.posterior import batch_size_of, check_loss_shape
from llcjax.program import Recorded
from llcjax.progress import SweepStats
from llcjax.provenance import provenance
from llcjax.samplers import FULL_BATCH
from llcjax.store import SweepStore, is_sweep, open_sweep
from llcjax.types import LossFn, Observe, Params, PRNGKey
from llcjax.writer import MOMENT, named_arrays

GROUP_DIMS = ("checkpoint", "setting")
DRAW_DIMS = ("checkpoint", "setting", "chain", "draw")


def sweep(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig | None = None,
    *,
    out: Path | str | None = None,
    key: PRNGKey | int | None = None,
    mask: Params | None = None,
    components: Mapping[str, Params] | None = None,
    observe: Observe | None = None,
    probes: Mapping[str, Any] | None = None,
    chance: float | None = None,
    attrs: dict[str, Any] | None = None,
    on_chunk: Callable[[SweepStats], None] | None = None,
    devices: list[jax.Device] | None = None,
    save_every_seconds: float = 120.0,
    progress: bool = False,
) -> xr.Dataset:
    """Samples the local posterior at every checkpoint of a bank, at every setting, with several chains.

    Args:
        loss_fn: `(params, batch) -> losses`, see `llcjax.types.LossFn`.
        bank: the checkpoints.
        data: arrays with a leading example axis, a function `(key) -> batch`, or None for a loss without data.
        config: hyperparameters and counts.
        out: folder of the store. An unfinished sweep of the same config there is resumed, a finished one is
            returned. None keeps the store in memory. Several processes (`jax.distributed`) that call this with one
            folder share the sweep, and each returns the whole of it.
        key: base key; None takes `config.seed`.
        mask: pytree of booleans, each broadcastable to its parameters: True is sampled, False stays at the checkpoint.
        components: name -> mask, such as `llcjax.component_masks` gives: the refined LLC of every component as one
            sweep. The settings of the grid are repeated for each, with its name in the coordinate `component`; chains
            carry the sampled entries alone, and each launch holds one checkpoint once.
        observe: any function of the parameters to record at each draw (an array or a dict of arrays).
        probes: name -> batch: the loss of each of its examples (of each position, with `per_position`) is recorded at
            each draw as `probe_NAME`. With `config.reduce` only means or covariances of all observables are kept.
        chance: loss of a trivial predictor, for the verdicts.
        attrs: further facts to store.
        on_chunk: called with `SweepStats` after each chunk.
        devices: devices to share the runs; None takes all local ones.
        save_every_seconds: time between two saves of the chains' state.
        progress: shows a progress bar.

    Returns:
        Facts with dimensions `(checkpoint, setting, chain, draw[, position])`; see `llcjax.open_sweep`.

    Raises:
        ValueError: bad input, before anything is computed.
        RuntimeError: another run holds `out`; the sentence names its process and host.
        OSError: the disk is full or `out` is read-only; what was drawn is kept and the same call goes on.
        Interrupted: Ctrl-C or SIGTERM; what was drawn is in the store and the same call goes on.
    """
    job = make_job(
        loss_fn,
        bank,
        data,
        config or SweepConfig(),
        key=key,
        mask=mask,
        components=components,
        observe=observe,
        probes=probes,
        devices=devices,
    )
    if out is None:
        if jax.process_count() > 1:
            raise ValueError(f"out=None, but {jax.process_count()} processes need a folder that they share; give out.")
        store = _prepared(job, None, chance, attrs)
        run_job(job, store, on_chunk, save_every_seconds, progress)
        return store.open()
    path = Path(out)
    with contextlib.ExitStack() as held, writing_to(path):

        def begin() -> None:
            # A whole sweep is only read, by as many as like, also where nothing can be written.
            whole = is_whole(path)
            if not whole:
                held.enter_context(only_run(path))
            _prepared(job, path, chance, attrs, mend=not whole)

        processes.first_alone(begin)
        store = SweepStore.reopen(path)
        processes.together(lambda: run_job(job, store, on_chunk, save_every_seconds, progress))
        processes.first_alone(store.drop_states)
    return open_sweep(path)


def _prepared(
    job: Job, path: Path | None, chance: float | None, attrs: dict[str, Any] | None, *, mend: bool = False
) -> SweepStore:
    """The store, with all that is not sampled; to mend one is to forget what in it is broken."""
    store = _open_or_create(job, path, chance, attrs, mend)
    write_init_losses(job, store)
    write_prior_losses(job, store)
    write_probe_losses(job, store)
    return store


def make_job(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig,
    *,
    key: PRNGKey | int | None = None,
    mask: Params | None = None,
    components: Mapping[str, Params] | None = None,
    observe: Observe | None = None,
    probes: Mapping[str, Any] | None = None,
    devices: list[jax.Device] | None = None,
) -> Job:
    """The checked facts of a sweep; the arguments are those of `sweep`.

    Raises:
        ValueError: bad input.
    """
    if mask is not None and components is not None:
        raise ValueError("mask and components are both given; join the mask into those of the components.")
    source = data_source(data)
    has_positions = _check(loss_fn, bank, source, config)
    fixed = {name: jax.tree.map(jnp.asarray, batch) for name, batch in (probes or {}).items()}
    check_probes(loss_fn, bank.checkpoint(0), fixed)
    if config.reduce != "none" and observe is None and not fixed:
        raise ValueError(f"reduce={config.reduce!r} has nothing to reduce; give observe or probes, or set it to none.")
    slices, sizes = (None, ()) if components is None else make_slices(components, bank.checkpoint(0))
    return Job(
        loss_fn=loss_fn,
        bank=bank,
        source=source,
        config=config,
        base=keys.as_key(config.seed if key is None else key),
        observe=observe,
        per_position=config.per_position and has_positions,
        mesh=_compat.run_mesh(devices, config.devices_per_run),
        mask=None if mask is None else _checked_mask(mask, bank),
        slices=slices,
        probes=fixed,
        component_names=tuple(components or ()),
        component_sizes=tuple(int(size) for size in sizes),
    )


def check_data(source: DataSource, config: SweepConfig) -> None:
    """Refuses settings that do not go with the data.

    Raises:
        ValueError: the sentence names the setting, its value and the fix.
    """
    check_batch_size(source, config.batch_size)
    if source.is_function and config.baseline == "dataset" and config.num_baseline_batches is None:
        raise ValueError(
            "baseline='dataset' needs num_baseline_batches where data is a function; give it, or use baseline='paired'."
        )
    if config.sampler in FULL_BATCH and source.num_examples is not None and config.batch_size is not None:
        raise ValueError(
            f"batch_size={config.batch_size}: {config.sampler} is exact on the full batch only; set batch_size to None."
        )
    if config.eval_every and source.num_examples is None:
        raise ValueError(f"eval_every={config.eval_every} needs data as arrays; give arrays, or set it to 0.")


def check_finite(bank: CheckpointBank) -> None:
    """Refuses a bank without any checkpoint of finite parameters; a broken one among others gets the verdict `failed`.

    Raises:
        ValueError: the sentence names the training step and the parameter.
    """
    if bank.finite().any():
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(bank.checkpoint(0)):
        if not np.isfinite(leaf).all():
            raise ValueError(
                f"the parameters of step {bank.steps[0]} contain NaN or inf at {jax.tree_util.keystr(path)}, and no "
                "other checkpoint of the bank is finite; train again with a smaller learning rate or give other files."
            )


def _check(loss_fn: LossFn, bank: CheckpointBank, source: DataSource, config: SweepConfig) -> bool:
    """Refuses bad input before anything is computed; returns whether the loss has positions."""
    _compat.check_device()
    check_data(source, config)
    check_finite(bank)
    batch = example_batch(source, config.batch_size)
    size, part = batch_size_of(batch), config.microbatch_size
    if part is not None and size % part and part < size:
        raise ValueError(f"microbatch_size={part} does not divide a batch of {size} examples; choose a divisor.")
    return check_loss_shape(loss_fn, bank.checkpoint(0), batch)


def _checked_mask(mask: Params, bank: CheckpointBank) -> Params:
    """The mask as boolean arrays of the parameters' own shapes."""
    params = bank.checkpoint(0)
    return jax.tree.unflatten(jax.tree.structure(params), check_mask(mask, params))


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
    if job.slices is not None:
        parts += ([job.component_names, job.slices.leaves, array_digest(job.slices.index)],)
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
    if job.component_names:
        facts["components"] = list(job.component_names)
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
    if job.component_names:
        hyper["component"] = (("setting",), job.component_of_setting)
        hyper["num_params"] = (("setting",), np.array(job.component_sizes)[job.component_of_setting])
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
        dims = (*DRAW_DIMS, *_extra_dims(name, len(extra)))
        shape, chunks = (*groups, chains, draws, *extra), (1, 1, chains, block, *extra)
        fill = float("nan") if np.issubdtype(leaf.dtype, np.floating) else 0
        store.allocate(name, dims, shape, chunks, str(leaf.dtype), fill)
    store.allocate("first_nonfinite_step", (*GROUP_DIMS, "chain"), (*groups, chains), (1, 1, chains), "int32", -1)
    store.allocate("num_draws_done", GROUP_DIMS, groups, (1, 1), "int32", 0)


def _allocate_moments(
    store: SweepStore, name: str, leaf: Any, groups: tuple[int, int], chains: int, blocks: int
) -> None:
    """Makes room for the moments of each block; a chunk of the store is one block."""
    extra = leaf.shape[1:]
    dims = (*GROUP_DIMS, "chain", "block", *("feature", "feature_other")[: len(extra)])
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
        states = jax.eval_shape(tiny.start_runs, anchors, runs, part)
        return jax.eval_shape(tiny.advance_runs, states, anchors, runs, part, *rest)[1]

    return tiny.known("recorded", traced, anchors, runs, job.part, roots, job.source.arrays, job.watch, jnp.int32(0))
