"""The batched, sharded, resumable sweep: every checkpoint x setting x chain as one flat axis of runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from llcjax import _compat, checks, keys, processes
from llcjax.chain import num_recorded
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.damage import is_whole
from llcjax.data import DataSource, check_batch_size, data_source, example_batch, some_examples
from llcjax.job import Job
from llcjax.launch import run_job
from llcjax.observables import check_probes
from llcjax.output_folder import only_run, writing_to
from llcjax.posterior import batch_size_of, check_loss_shape, check_mean
from llcjax.progress import SweepStats
from llcjax.samplers import FULL_BATCH
from llcjax.slices import check_mask, make_components
from llcjax.store import SweepStore, open_sweep
from llcjax.sweep_store import prepared_store
from llcjax.types import LossFn, Observe, Params, PRNGKey

MOST_DRAWS = 10**8
"""Most recorded draws of a chain: the store has a number for each."""


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
    _check_options(out, chance, attrs, on_chunk, save_every_seconds, progress)
    job = make_job(
        loss_fn,
        bank,
        data,
        SweepConfig() if config is None else config,
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
        store = prepared_store(job, None, chance, attrs, progress=progress)
        run_job(job, store, on_chunk, save_every_seconds, progress)
        return store.open()
    path = Path(out)
    with contextlib.ExitStack() as held, writing_to(path):

        def begin() -> None:
            # A whole sweep is only read, by as many as like, also where nothing can be written.
            whole = is_whole(path)
            if not whole:
                held.enter_context(only_run(path))
            prepared_store(
                job, path, chance, attrs, mend=not whole, save_every_seconds=save_every_seconds, progress=progress
            )

        processes.first_alone(begin)
        store = SweepStore.reopen(path)
        processes.together(lambda: run_job(job, store, on_chunk, save_every_seconds, progress))
        processes.first_alone(store.drop_states)
    return open_sweep(path)


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
    checks.function("loss_fn", loss_fn, "(params, batch) -> losses")
    checks.instance("bank", bank, CheckpointBank, "a CheckpointBank, such as llcjax.import_bank(folder)")
    checks.instance("config", config, SweepConfig, "a SweepConfig")
    if observe is not None:
        checks.function("observe", observe, "of the parameters")
    for name, given in (("components", components), ("probes", probes)):
        if given is not None:
            checks.instance(name, given, Mapping, "a dict by name")
    if devices is not None and not (
        isinstance(devices, (list, tuple)) and devices and all(isinstance(one, jax.Device) for one in devices)
    ):
        raise ValueError(f"devices={checks.shown(devices)} must be a list of jax devices; None takes all.")
    source = data_source(data)
    num_axes = _check(loss_fn, bank, source, config)
    _check_runs(bank, config, len(components or ()))
    fixed = {name: data_source(batch).arrays for name, batch in (probes or {}).items()}
    check_probes(loss_fn, bank.checkpoint(0), fixed)
    if config.reduce != "none" and observe is None and not fixed:
        raise ValueError(f"reduce={config.reduce!r} has nothing to reduce; give observe or probes, or set it to none.")
    return Job(
        loss_fn=loss_fn,
        bank=bank,
        source=source,
        config=config,
        base=keys.as_key(config.seed if key is None else key),
        observe=observe,
        per_position=config.per_position and num_axes == 2,
        per_example=num_axes > 0,
        mesh=_compat.run_mesh(devices, config.devices_per_run),
        mask=None if mask is None else _checked_mask(mask, bank),
        components=None if components is None else make_components(components, bank.checkpoint(0)),
        probes=fixed,
    )


def _check_options(out: Any, chance: Any, attrs: Any, on_chunk: Any, save_every_seconds: Any, progress: Any) -> None:
    """Refuses options of a sweep that are not of their kind."""
    if out is not None:
        checks.path("out", out)
    if chance is not None:
        checks.number("chance", chance, "a finite loss", least=-checks.LARGEST)
    if attrs is not None:
        checks.instance("attrs", attrs, dict, "a dict of JSON values by name")
        try:
            json.dumps(attrs, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"attrs cannot be stored as JSON ({error}); give texts, numbers, lists and dicts."
            ) from None
    if on_chunk is not None:
        checks.function("on_chunk", on_chunk, "of llcjax.progress.SweepStats")
    checks.number("save_every_seconds", save_every_seconds)
    checks.flag("progress", progress)


def _check_runs(bank: CheckpointBank, config: SweepConfig, num_components: int) -> None:
    """Refuses counts that would overflow the numbers of runs and draws."""
    settings = len(config.n_beta) * len(config.localization) * len(config.step_size) * max(num_components, 1)
    runs = len(bank) * settings * config.num_chains
    if runs > checks.MOST:
        raise ValueError(
            f"{len(bank):,} checkpoints x {settings:,} settings x {config.num_chains:,} chains are {runs:,} runs; "
            f"sweep at most {checks.MOST:,} at once."
        )
    recorded = num_recorded(config.num_draws, config.num_burnin_steps, config.num_steps_between_draws)
    if recorded > MOST_DRAWS:
        raise ValueError(
            f"each chain would record {recorded:,} draws; record at most {MOST_DRAWS:,}, with a larger "
            "num_steps_between_draws."
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


def _check(loss_fn: LossFn, bank: CheckpointBank, source: DataSource, config: SweepConfig) -> int:
    """Refuses bad input before anything is computed; returns the number of axes of the losses."""
    _compat.check_device()
    check_data(source, config)
    check_finite(bank)
    batch = example_batch(source, config.batch_size)
    size, part = batch_size_of(batch), config.microbatch_size
    if part is not None and size % part and part < size:
        raise ValueError(f"microbatch_size={part} does not divide a batch of {size} examples; choose a divisor.")
    num_axes = check_loss_shape(loss_fn, bank.checkpoint(0), batch)
    if jax.tree.leaves(batch) and num_axes == 0:
        check_mean(loss_fn, bank.checkpoint(int(bank.finite().argmax())), some_examples(source))
    return num_axes


def _checked_mask(mask: Params, bank: CheckpointBank) -> Params:
    """The mask as boolean arrays of the parameters' own shapes."""
    params = bank.checkpoint(0)
    return jax.tree.unflatten(jax.tree.structure(params), check_mask(mask, params))
