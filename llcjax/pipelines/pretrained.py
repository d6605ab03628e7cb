"""Sweeps of models that others trained: a folder or a series of folders, a file of tokens, a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from llcjax import checks
from llcjax.components import component_masks, head_names
from llcjax.config import SweepConfig, as_dict
from llcjax.estimators import estimates
from llcjax.models.attention_only import AttentionOnlyConfig
from llcjax.models.decoder import DecoderConfig, decoder
from llcjax.pipelines.experiment_config import recipe
from llcjax.report import write_report
from llcjax.streamed import pretrained_bank
from llcjax.sweep import sweep
from llcjax.tasks.text import next_token_loss
from llcjax.tokens import read_tokens, token_rows
from llcjax.types import Params


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedSweep:
    """A sweep of models on disk. The defaults are those of the literature for models of 14M parameters and less."""

    model: tuple[Path, ...]
    """Hugging Face folders (GPT-2, GPT-NeoX, Llama) or llama2.c files; several are checkpoints of one run."""
    tokens: Path
    """Token ids: .npy, .u16 or .u16.xz; rows, or one long sequence that is cut."""
    sweep: SweepConfig = dataclasses.field(
        default_factory=lambda: SweepConfig(
            n_beta=(30.0,), localization=(300.0,), step_size=(1e-4,), batch_size=16, num_draws=100
        )
    )
    length: int = 128
    """Tokens a sequence."""
    num_sequences: int | None = 4096
    """Sequences of the file to use, from its start; none = all."""
    start: int | None = None
    """Token that begins each sequence, where the models were trained so; none = sequences as the file has them."""
    components: tuple[str, ...] = ()
    """Parts to sample instead of everything: `heads` for each head, or names such as l0h1, "l0 mlp", embed, full."""
    rematerialize: bool = False
    """Recomputes each block in the backward pass: less memory, a third more arithmetic."""


def run_pretrained(
    options: PretrainedSweep, out: Path, *, command: str, progress: bool = False
) -> tuple[Path, xr.Dataset]:
    """Sweeps the models, and writes the store and a report into a folder.

    Args:
        options: the models, the tokens and the sweep.
        out: folder; an unfinished sweep there goes on.
        command: what to type to do it again, for the report.
        progress: shows a progress bar.

    Returns:
        The path of the report, and the estimates.

    Raises:
        ValueError: bad input, before anything is sampled.
    """
    facts = sweep_models(options, out / "sweep", progress=progress)
    title = " ".join(path.name for path in options.model[:3]) + (" ..." if len(options.model) > 3 else "")
    config = {**as_dict(options.sweep), "model": [str(path) for path in options.model]}
    return parts_report(facts, out, title=title, config=config, command=command)


def parts_report(
    facts: xr.Dataset, out: Path, *, title: str, config: Mapping[str, Any], command: str
) -> tuple[Path, xr.Dataset]:
    """The report of a sweep of language models or of their parts; opens on the whole model where it was swept.

    Args:
        facts: the sweep.
        out: folder of the report.
        title: heading of the page.
        config: what it was made with.
        command: what to type to do it again.

    Returns:
        The path of the report, and the estimates.
    """
    table, names = estimates(facts), list(facts.attrs.get("components", ()))
    path = write_report(
        out,
        title=title,
        sweep=facts,
        estimates=table,
        metrics=None,
        stages=None,
        config=config,
        provenance=json.loads(facts.attrs["provenance"]),
        command=command,
        chance_name="uniform predictor",
        setting=names.index("full") * (table.sizes["setting"] // len(names)) if "full" in names else 0,
    )
    return path, table


def sweep_models(options: PretrainedSweep, store: Path, *, progress: bool = False) -> xr.Dataset:
    """Sweeps the models into a store, or goes on with it."""
    config, bank = pretrained_bank(options.model)
    rows = checked_rows(options.tokens, config, options.length, options.num_sequences, options.start)
    return sweep(
        next_token_loss(decoder(config, rematerialize=options.rematerialize)),
        bank,
        rows,
        options.sweep,
        out=store,
        components=chosen_masks(bank.checkpoint(0), config, options.components),
        chance=float(np.log(config.vocabulary)),
        attrs={"rerun": recipe("pretrained", options)},
        progress=progress,
    )


def checked_rows(
    path: Path, config: DecoderConfig | AttentionOnlyConfig, length: int, most: int | None, start: int | None
) -> np.ndarray:
    """Sequences of token ids that a model knows.

    Raises:
        ValueError: a token id or a start beyond the vocabulary, or a length that the model or the file does not have.
    """
    if not 2 <= checks.count("length", length) <= config.num_tokens:
        raise ValueError(f"length={length} must be between 2 and the {config.num_tokens} tokens of the model.")
    if start is not None and start >= config.vocabulary:
        raise ValueError(f"start={start} is none of the {config.vocabulary} tokens of the model.")
    rows = token_rows(read_tokens(path), length, most, start)
    if rows.max() >= config.vocabulary:
        raise ValueError(
            f"tokens={path} holds the id {rows.max()}, but the model has {config.vocabulary} tokens; use its tokenizer."
        )
    return rows


def chosen_masks(params: Params, config: DecoderConfig, names: Sequence[str]) -> dict[str, Params] | None:
    """Masks of the named components, `heads` standing for all of them; None where all parameters are sampled."""
    if not names:
        return None
    heads = head_names(config.num_layers, config.num_heads)
    listed = [part for name in names for part in (heads if name == "heads" else [name])]
    return component_masks(params, listed, num_heads=config.num_heads, num_key_value_heads=config.num_key_value_heads)
