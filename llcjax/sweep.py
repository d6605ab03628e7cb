"""The batched, sharded, resumable sweep: every checkpoint x setting x chain as one flat axis of runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from llcjax import _compat, keys, processes, trees
from llcjax.baseline import write_init_losses, write_prior_losses
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig, array_digest, as_dict, fingerprint
from llcjax.data import DataSource, check_batch_size, data_source, example_batch
from llcjax.job import Job, launch_inputs
from llcjax.launch import run_job
from llcjax.output_folder import only_run, writing_to
from llcjax.posterior import check_loss_shape
from llcjax.program import Recorded
from llcjax.progress import SweepStats
from llcjax.provenance import provenance
from llcjax.samplers import FULL_BATCH
from llcjax.store import SweepStore, is_complete, is_sweep, open_sweep
from llcjax.types import LossFn, Observe, Params, PRNGKey
from llcjax.writer import named_arrays

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
    observe: Observe | None = None,
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
        observe: any function of the parameters to record at each draw (an array or a dict of arrays).
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
    job = make_job(loss_fn, bank, data, config or SweepConfig(), key=key, mask=mask, observe=observe, devices=devices)
    if out is None:
        if jax.process_count() > 1:
            raise ValueError(f"out=None, but {jax.process_count()} processes need a folder that they share; give out.")
        store = _prepared(job, None, chance, attrs)
        run_job(job, store, on_chunk, save_every_seconds, progress)
        return store.open()
    path = Path(out)
    with contextlib.ExitStack() as held, writing_to(path):
        # A finished sweep is only read, by as many as like, also where nothing can be written.
        processes.first_alone(lambda: None if is_complete(path) else held.enter_context(only_run(path)))
        processes.first_alone(lambda: _prepared(job, path, chance, attrs))
        store = SweepStore.reopen(path)
        processes.together(lambda: run_job(job, store, on_chunk, save_every_seconds, progress))
        processes.first_alone(store.drop_states)
    return open_sweep(path)


def _prepared(job: Job, path: Path | None, chance: float | None, attrs: dict[str, Any] | None) -> SweepStore:
    """The store, with all that is not sampled."""
    store = _open_or_create(job, path, chance, attrs)
    write_init_losses(job, store)
    write_prior_losses(job, store)
    return store


def make_job(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig,
    *,
    key: PRNGKey | int | None = None,
    mask: Params | None = None,
    observe: Observe | None = None,
    devices: list[jax.Device] | None = None,
) -> Job:
    """The checked facts of a sweep; the arguments are those of `sweep`.

    Raises:
        ValueError: bad input.
    """
    source = data_source(data)
    has_positions = _check(loss_fn, bank, source, config)
    return Job(
        loss_fn=loss_fn,
        bank=bank,
        source=source,
        config=config,
        base=keys.as_key(config.seed if key is None else key),
        observe=observe,
        per_position=config.per_position and has_positions,
        mesh=_compat.run_mesh(devices),
        mask=None if mask is None else _checked_mask(mask, bank),
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
    broken = np.zeros(len(bank), bool)
    for path, leaf in jax.tree_util.tree_leaves_with_path(bank.params):
        broken |= ~np.isfinite(np.asarray(leaf)).reshape(len(bank), -1).all(1)
        if broken.all():
            raise ValueError(
                f"the parameters of step {bank.steps[0]} contain NaN or inf at {jax.tree_util.keystr(path)}, and no "
                "other checkpoint of the bank is finite; train again with a smaller learning rate or give other files."
            )


def _check(loss_fn: LossFn, bank: CheckpointBank, source: DataSource, config: SweepConfig) -> bool:
    """Refuses bad input before anything is computed; returns whether the loss has positions."""
    _compat.check_device()
    check_data(source, config)
    check_finite(bank)
    return check_loss_shape(loss_fn, bank.checkpoint(0), example_batch(source, config.batch_size))


def _checked_mask(mask: Params, bank: CheckpointBank) -> Params:
    """The mask as boolean arrays of the parameters' own shapes."""
    params = bank.checkpoint(0)
    try:
        full = jax.tree.map(lambda keep, leaf: np.broadcast_to(np.asarray(keep, bool), np.shape(leaf)), mask, params)
    except ValueError as error:
        raise ValueError(f"mask does not fit the parameters ({error}); give one boolean, or array, a leaf.") from error
    if not any(keep.any() for keep in jax.tree.leaves(full)):
        raise ValueError("mask leaves no parameter to sample; set at least one entry to True.")
    return full


def _identity(job: Job, recorded: list[str]) -> str:
    """What makes two sweeps the same sweep: bank, data and every setting that changes the numbers."""
    free = as_dict(dataclasses.replace(job.config, draws_per_chunk=1, runs_per_launch=None))
    if not job.config.step_size_decay:
        free = {name: value for name, value in free.items() if not name.startswith("step_size_decay")}
    data = [array_digest(leaf) for leaf in jax.tree.leaves(job.source.arrays)]
    seed = jax.random.key_data(job.base).tolist()
    mask = [np.packbits(keep).tobytes().hex() for keep in jax.tree.leaves(job.mask)]
    return fingerprint(free, job.bank.fingerprint(), data, seed, mask, recorded)


def _open_or_create(job: Job, path: Path | None, chance: float | None, attrs: dict[str, Any] | None) -> SweepStore:
    arrays = named_arrays(_one_chunk_of_two_runs(job))
    identity = _identity(job, list(arrays))
    if path is not None and is_sweep(path):
        store = SweepStore.reopen(path)
        if store.group.attrs["fingerprint"] != identity:
            raise ValueError(
                f"out={path} holds a sweep of another config, bank or data; choose another folder or remove it."
            )
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
    store = SweepStore.create(path, coords=_coords(job), attrs=facts)
    _allocate(job, store, arrays)
    return store.publish()


def _num_sampled(mask: Params) -> int:
    return sum(int(keep.sum()) for keep in jax.tree.leaves(mask))


def _coords(job: Job) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    settings = job.config.settings
    hyper = {
        name: (("setting",), np.array([getattr(setting, name) for setting in settings]))
        for name in ("n_beta", "localization", "step_size")
    }
    return {
        "checkpoint": (("checkpoint",), job.bank.steps),
        "setting": (("setting",), np.arange(len(settings))),
        "chain": (("chain",), np.arange(job.config.num_chains)),
        "draw": (("draw",), np.arange(job.num_recorded) * job.config.num_steps_between_draws),
        **hyper,
    }


def _allocate(job: Job, store: SweepStore, arrays: dict[str, Any]) -> None:
    """Makes room for everything that a chunk returns; `arrays` tells the shapes for two runs and one draw."""
    groups = (len(job.bank), len(job.config.settings))
    chains, draws = job.config.num_chains, job.num_recorded
    block = job.draws_per_chunk
    for name, leaf in arrays.items():
        extra = leaf.shape[2:]
        dims = (*DRAW_DIMS, *_extra_dims(name, len(extra)))
        shape, chunks = (*groups, chains, draws, *extra), (1, 1, chains, block, *extra)
        fill = float("nan") if np.issubdtype(leaf.dtype, np.floating) else 0
        store.allocate(name, dims, shape, chunks, str(leaf.dtype), fill)
        if "position" in dims:
            store.put("position", ("position",), np.arange(1, extra[0] + 1))
    store.allocate("first_nonfinite_step", (*GROUP_DIMS, "chain"), (*groups, chains), (1, 1, chains), "int32", -1)
    store.allocate("num_draws_done", GROUP_DIMS, groups, (1, 1), "int32", 0)


def _extra_dims(name: str, count: int) -> tuple[str, ...]:
    if name.endswith("_position"):
        return ("position",)
    return tuple(f"{name}_{axis}" for axis in range(count))


def _one_chunk_of_two_runs(job: Job) -> Recorded:
    """Shapes of a tiny chunk, traced and not computed."""
    tiny = job.program(1)
    anchors, runs, roots = launch_inputs(job, np.zeros(1, np.int64), 2)

    def traced(anchors: Params, runs: Any, mask: Params | None, *rest: Any) -> Recorded:
        states = jax.eval_shape(tiny.start_runs, anchors, runs, mask)
        return jax.eval_shape(tiny.advance_runs, states, anchors, runs, mask, *rest)[1]

    return tiny.known("recorded", traced, anchors, runs, job.mask, roots, job.source.arrays, jnp.int32(0))
