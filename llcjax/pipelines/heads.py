"""The refined LLC of every attention head of the paper's language model, at the checkpoints of any bank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from llcjax.bank_import import import_bank
from llcjax.checkpoints import CheckpointBank, check_fits
from llcjax.components import component_masks, head_names
from llcjax.config import SweepConfig, as_dict
from llcjax.models.attention_only import AttentionOnlyConfig, attention_only, attention_only_losses
from llcjax.models.sizes import Activations
from llcjax.pipelines.experiment_config import recipe
from llcjax.pipelines.pretrained import checked_rows, parts_report
from llcjax.sweep import sweep
from llcjax.tasks.text import loss_of_next_tokens
from llcjax.types import Params

REFINED = SweepConfig(
    n_beta=(30.0,), localization=(200.0,), step_size=(1e-3,), batch_size=32, num_chains=2, num_draws=100
)
"""The settings of arXiv 2410.02984 (n_beta 30, localization 200, step size 1e-3, batches of 32), with 2 chains."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSweep:
    """All heads of an attention-only language model at checkpoints of a bank. The sweep is that of arXiv 2410.02984."""

    bank: Path
    """Checkpoints: a bank of llcjax, or per-step orbax folders, .npz or .safetensors files."""
    tokens: Path
    """Token ids: .npy, .u16 or .u16.xz; rows, or one long sequence that is cut."""
    sweep: SweepConfig = REFINED
    num_heads: int = 8
    """Attention heads a block; all other sizes are those of the parameters."""
    num_checkpoints: int | None = 50
    """Checkpoints to take, evenly spread over the bank; none = all."""
    num_sequences: int | None = None
    """Sequences of the file to use, from its start; none = all."""
    start: int | None = None
    """Token that begins each sequence, as in training (0 in `llcjax run language`); none = as the file has them."""
    components: tuple[str, ...] = ()
    """Parts to sample; none named = every head."""
    activations: Activations = "float32"
    """How what stands between the layers is stored; bfloat16 is twice as fast on a GPU."""


def run_heads(options: HeadsSweep, out: Path, *, command: str, progress: bool = False) -> tuple[Path, xr.Dataset]:
    """Sweeps the heads, and writes the store and a report with the curves of all heads into a folder.

    Args:
        options: the bank, the tokens and the sweep.
        out: folder; an unfinished sweep there goes on.
        command: what to type to do it again, for the report.
        progress: shows a progress bar.

    Returns:
        The path of the report, and the estimates.

    Raises:
        ValueError: bad input, before anything is sampled.
    """
    facts = sweep_chosen(options, out / "sweep", progress=progress)
    config = {**as_dict(options.sweep), "bank": str(options.bank), "components": list(facts.attrs["components"])}
    return parts_report(facts, out, title=f"Heads of {options.bank.name}", config=config, command=command)


def sweep_chosen(options: HeadsSweep, store: Path, *, progress: bool = False) -> xr.Dataset:
    """Sweeps the heads of the chosen checkpoints into a store, or goes on with it."""
    bank = spread(import_bank(options.bank), options.num_checkpoints)
    model = sizes_of(bank.checkpoint(0), options.num_heads)
    return sweep_heads(
        bank,
        model,
        checked_rows(options.tokens, model, model.num_tokens, options.num_sequences, options.start),
        options.sweep,
        names=options.components or None,
        activations=options.activations,
        out=store,
        progress=progress,
        attrs={"rerun": recipe("heads", options)},
    )


def spread(bank: CheckpointBank, count: int | None) -> CheckpointBank:
    """So many checkpoints, evenly spread over those that a bank holds, its first and last among them.

    Raises:
        ValueError: no checkpoint is asked for.
    """
    if count is None or count >= len(bank):
        return bank
    if count < 1:
        raise ValueError(f"num_checkpoints={count} must be at least 1; none takes all.")
    return bank[np.linspace(0, len(bank) - 1, count).round().astype(int)]


def sizes_of(params: Params, num_heads: int) -> AttentionOnlyConfig:
    """The sizes of an attention-only model, from its parameters.

    Raises:
        ValueError: they are those of another model.
    """
    try:
        (vocabulary, width), length = np.shape(params["embed"]), np.shape(params["positions"])[0]
        layers = len(params["blocks"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"the bank holds no attention-only language model ({type(error).__name__}: {error}); it needs embed, "
            "positions and blocks."
        ) from error
    return AttentionOnlyConfig(
        num_layers=layers, num_heads=num_heads, model_width=width, num_tokens=length, vocabulary=vocabulary
    )


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
        activations: as in `attention_only`.
        out: folder of the store; an unfinished sweep there goes on.
        **options: further ones of `llcjax.sweep`, such as `progress=True`.

    Returns:
        Facts, with the name of each head in the coordinate `component`; `llcjax.estimates` makes the curves, and
        `llcjax.plots.plot_components` draws them.

    Raises:
        ValueError: a bank of another model, or bad input of the sweep.
    """
    init, _ = attention_only(model, activations)
    check_fits(bank[:1], jax.eval_shape(init, jax.random.key(0)))
    listed = list(names or head_names(model.num_layers, model.num_heads))
    masks = component_masks(bank.checkpoint(0), listed, num_heads=model.num_heads)
    chance = float(np.log(model.vocabulary))
    loss_fn = loss_of_next_tokens(attention_only_losses(model, activations))
    return sweep(loss_fn, bank, tokens, config, components=masks, chance=chance, out=out, **options)
