"""Losses that are measured once a checkpoint: L(w*) over all examples, and the loss of the localisation prior."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from llcjax import keys
from llcjax.chain import prior_start
from llcjax.data import draw_batch
from llcjax.job import Job
from llcjax.observables import INIT_PROBE, PROBE, probe_losses
from llcjax.posterior import LocalPosterior
from llcjax.program import sampled_losses
from llcjax.runs import Part
from llcjax.slices import Slices
from llcjax.store import SweepStore
from llcjax.types import GROUP, Params, PRNGKey


def write_init_losses(job: Job, store: SweepStore) -> None:
    """L(w*) of every checkpoint over all examples (or many batches), where the estimate needs it."""
    if (job.config.baseline == "paired" and not job.config.eval_every) or store.holds("init_loss"):
        return
    if job.source.is_function:
        _write_sampled_init_losses(job, store)
        return
    compiled = job.program(1)
    arrays = compiled.put(job.source.arrays)
    losses = [compiled.dataset_loss(job.bank.checkpoint(i), arrays) for i in range(len(job.bank))]
    if losses[0].position_total is not None:
        positions = np.stack([np.asarray(loss.position_mean) for loss in losses])
        store.put("init_loss_position", ("checkpoint", "position"), positions)
    store.put("init_loss_stderr", ("checkpoint",), np.zeros(len(losses), np.float32))
    store.put("init_loss", ("checkpoint",), np.array([float(loss.mean) for loss in losses], np.float32))


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
    draw = jax.jit(functools.partial(_prior_loss, job))
    root = keys.chain_key(job.base, "control", 0, 0)
    control_keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(count))
    means = np.zeros((len(job.bank), len(settings)), np.float32)
    for column, setting in enumerate(settings):
        for row in range(len(job.bank)):
            anchor = job.bank.checkpoint(row)
            part, place = job.part(column), job.row_of_setting[column]
            means[row, column] = np.mean(
                [draw(job.source.arrays, key, anchor, part, place, setting.localization) for key in control_keys]
            )
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
    job: Job, arrays: Any, key: PRNGKey, anchor: Params, part: Part, component: Array, localization: Array
) -> Array:
    """Loss of one draw from the prior on one batch."""
    position_key, batch_key = jax.random.split(key)
    slices = part if isinstance(part, Slices) else None
    start = anchor if slices is None else slices.take(anchor, component)
    mask = part if slices is None else slices.valid(anchor, component)
    posterior = LocalPosterior(job.loss_fn, start, 0.0, localization, 0.0, job.config.box, mask)
    drawn = prior_start(position_key, posterior)
    params = drawn if slices is None else slices.insert(anchor, component, drawn)
    batch = draw_batch(arrays, job.source.draw, job.config.batch_size, batch_key)
    return posterior.loss(params, batch).mean
