"""L(w*) of every checkpoint over all examples, for the baseline of the literature and for full evaluations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from llcjax import keys
from llcjax.job import Job
from llcjax.program import sampled_losses
from llcjax.store import SweepStore


def write_init_losses(job: Job, store: SweepStore) -> None:
    """L(w*) of every checkpoint over all examples (or many batches), where the estimate needs it."""
    if (job.config.baseline == "paired" and not job.config.eval_every) or "init_loss" in store.group:
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
