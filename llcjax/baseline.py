"""Losses that are measured once a checkpoint: L(w*) over all examples, and the loss of the localisation prior."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llcjax import keys, processes
from llcjax.chain import prior_start
from llcjax.data import draw_batch
from llcjax.job import Job
from llcjax.observables import INIT_PROBE, PROBE, probe_losses
from llcjax.posterior import LocalPosterior
from llcjax.program import sampled_losses
from llcjax.progress import BaselineProgress
from llcjax.runs import Part
from llcjax.slices import Slices
from llcjax.store import SweepStore
from llcjax.types import GROUP, Params, PRNGKey

_BEGUN = "num_init_losses"
"""Attribute of a store that says how many checkpoints have their loss; gone once all of them do."""


def write_init_losses(job: Job, store: SweepStore, save_every_seconds: float = 20.0, progress: bool = False) -> None:
    """L(w*) of every checkpoint over all examples (or many batches), where the estimate needs it.

    With many examples this takes a while, so losses are saved as they come, and a sweep that was stopped goes on.
    """
    if job.config.baseline == "paired" and not job.config.eval_every:
        return
    if _are_held(store) and _BEGUN not in store.group.attrs:
        return
    if job.source.is_function:
        _write_sampled_init_losses(job, store)
        return
    compiled, losses = job.program(1), _saved_losses(store)
    arrays, saved_at = compiled.put(job.source.arrays), time.monotonic()
    store.group.attrs[_BEGUN] = len(losses)
    with BaselineProgress(len(job.bank), len(losses), enabled=progress and processes.is_first()) as bar:
        for index in range(len(losses), len(job.bank)):
            loss = compiled.dataset_loss(job.bank.checkpoint(index), arrays)
            by_position = None if loss.position_total is None else np.asarray(loss.position_mean)
            losses.append((np.float32(loss.mean), by_position))
            bar.update(index + 1)
            if time.monotonic() - saved_at >= save_every_seconds or index + 1 == len(job.bank):
                _save_losses(store, losses, len(job.bank))
                saved_at = time.monotonic()
    del store.group.attrs[_BEGUN]


def _are_held(store: SweepStore) -> bool:
    """Whether all that was written of these losses can be read."""
    names = ("init_loss", "init_loss_stderr", "init_loss_position")
    return "init_loss" in store.group and all(store.holds(name) for name in names if name in store.group)


def _saved_losses(store: SweepStore) -> list[tuple[np.float32, np.ndarray | None]]:
    """Losses, and those of each position, that an earlier try has saved."""
    begun = store.group.attrs.get(_BEGUN)
    count = begun if isinstance(begun, int) and begun > 0 and _are_held(store) else 0
    means = store.read("init_loss")[:count] if count else ()
    if not count or "init_loss_position" not in store.group:
        return [(mean, None) for mean in means]
    return list(zip(means, store.read("init_loss_position")[:count], strict=True))


def _save_losses(store: SweepStore, losses: list[tuple[np.float32, np.ndarray | None]], count: int) -> None:
    """Writes losses of the first checkpoints of `count`, NaN for the others."""
    means, by_position = (np.array(column) for column in zip(*losses, strict=True))
    missing = count - len(losses)

    def filled(values: np.ndarray) -> np.ndarray:
        return np.pad(values.astype(np.float32), [(0, missing), *[(0, 0)] * (values.ndim - 1)], constant_values=np.nan)

    if losses[0][1] is not None:
        store.put("init_loss_position", ("checkpoint", "position"), filled(by_position))
    store.put("init_loss_stderr", ("checkpoint",), np.zeros(count, np.float32))
    store.put("init_loss", ("checkpoint",), filled(means))
    store.group.attrs[_BEGUN] = len(losses)


def _write_sampled_init_losses(job: Job, store: SweepStore) -> None:
    count = job.config.num_baseline_batches or 0
    root = keys.chain_key(job.base, "baseline", 0, 0)
    batch_keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(count))
    draw = job.source.draw
    assert draw is not None
    params = [job.bank.checkpoint(i) for i in range(len(job.bank))]
    means = np.stack([np.asarray(sampled_losses(job.loss_fn, draw, p, batch_keys).mean) for p in params])
    store.put("init_loss_stderr", ("checkpoint",), means.std(1, ddof=1) / np.sqrt(count))
    store.put("init_loss", ("checkpoint",), means.mean(1))


def write_prior_losses(job: Job, store: SweepStore) -> None:
    """Mean loss over draws from the localisation prior: what a chain of n_beta = 0 would see.

    It stands in for chance where no trivial predictor is known.
    """
    count, settings = job.config.num_control_draws, job.settings
    if not count or store.holds("prior_loss"):
        return
    mean = jax.jit(functools.partial(_prior_loss, job))
    root = keys.chain_key(job.base, "control", 0, 0)
    control_keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(count))
    means = np.zeros((len(job.bank), len(settings)), np.float32)
    for row in range(len(job.bank)):
        anchor = jax.device_put(job.bank.checkpoint(row))
        seen: dict[tuple[int, int, float], float] = {}  # settings that differ in n_beta or step size share a prior
        for column, setting in enumerate(settings):
            place = (int(job.table_of_setting[column]), int(job.row_of_setting[column]), float(setting.localization))
            if place not in seen:
                part = job.part(column)
                seen[place] = float(mean(job.source.arrays, control_keys, anchor, part, place[1], place[2]))
            means[row, column] = seen[place]
    store.put("prior_loss", GROUP, means)


def write_probe_losses(job: Job, store: SweepStore) -> None:
    """Losses of every checkpoint on the probe batches; NaN at positions that have no weight."""
    for name, batch in job.probes.items():
        if store.holds(INIT_PROBE + name):
            continue
        at = jax.jit(
            functools.partial(probe_losses, job.loss_fn, per_position=job.per_position, without_weight=float("nan"))
        )
        values = np.stack([np.asarray(at(job.bank.checkpoint(row), batch)) for row in range(len(job.bank))])
        dims = [f"{PROBE}{name}_{axis}" for axis in range(values.ndim - 1)]
        store.put(INIT_PROBE + name, ("checkpoint", *dims), values)


def _prior_loss(
    job: Job, arrays: Any, control_keys: PRNGKey, anchor: Params, part: Part, component: Array, localization: Array
) -> Array:
    """Mean loss of as many draws from the prior as there are keys, each on a batch of its own."""
    slices = part if isinstance(part, Slices) else None
    start = anchor if slices is None else slices.take(anchor, component)
    mask = part if slices is None else slices.valid(anchor, component)
    posterior = LocalPosterior(job.loss_fn, start, 0.0, localization, 0.0, job.config.box, mask)

    def loss_of_draw(key: PRNGKey) -> Array:
        position_key, batch_key = jax.random.split(key)
        drawn = prior_start(position_key, posterior)
        params = drawn if slices is None else slices.insert(anchor, component, drawn)
        return posterior.loss(params, draw_batch(arrays, job.source.draw, job.config.batch_size, batch_key)).mean

    return jnp.mean(jax.lax.map(loss_of_draw, control_keys))
