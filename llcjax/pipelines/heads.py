"""The refined LLC of every attention head of the paper's language model, at every checkpoint of a bank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from llcjax.checkpoints import CheckpointBank, check_fits
from llcjax.components import component_masks, head_names
from llcjax.config import SweepConfig
from llcjax.models.attention_only import AttentionOnlyConfig, attention_only
from llcjax.models.sizes import Activations
from llcjax.sweep import sweep
from llcjax.tasks.text import next_token_loss

REFINED = SweepConfig(
    n_beta=(30.0,), localization=(200.0,), step_size=(1e-3,), batch_size=32, num_chains=2, num_draws=100
)
"""The settings of arXiv 2410.02984 (n_beta 30, localization 200, step size 1e-3, batches of 32), with 2 chains."""


def sweep_heads(
    bank: CheckpointBank,
    model: AttentionOnlyConfig,
    tokens: np.ndarray,
    config: SweepConfig = REFINED,
    *,
    names: Sequence[str] | None = None,
    activations: Activations = "float32",
    out: Path | str | None = None,
    **options: Any,
) -> xr.Dataset:
    """Sweeps all heads at all checkpoints of any bank of `attention_only`.

    Args:
        bank: checkpoints of the language model.
        model: its sizes.
        tokens: token ids `(sequence, num_tokens)`.
        config: hyperparameters and counts.
        names: components; None takes every head. `full` and `block_0/attention` may stand beside them.
        activations: bfloat16 is what a GPU's fused attention takes.
        out: folder of the store; an unfinished sweep there goes on.
        **options: further ones of `llcjax.sweep`, such as `progress=True`.

    Returns:
        Facts, with the name of each head in the coordinate `component`; `llcjax.estimates` makes the curves, and
        `llcjax.plots.plot_components` draws them.

    Raises:
        ValueError: a bank of another model, or bad input of the sweep.
    """
    init, apply = attention_only(model, activations)
    check_fits(bank[:1], jax.eval_shape(init, jax.random.key(0)))
    listed = list(names or head_names(model.num_layers, model.num_heads))
    masks = component_masks(bank.checkpoint(0), listed, num_heads=model.num_heads)
    chance = float(np.log(model.vocabulary))
    return sweep(next_token_loss(apply), bank, tokens, config, components=masks, chance=chance, out=out, **options)
