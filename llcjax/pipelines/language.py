"""The language experiment: what it adds to the steps that all experiments chain."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llcjax.checkpoints import CheckpointBank, SavedBank
from llcjax.config import array_digest, as_dict
from llcjax.models.attention_only import attention_only, attention_only_losses
from llcjax.pipelines.experiment_run import ExperimentRun, Functions, Training
from llcjax.pipelines.language_analysis import Analyses, analyse
from llcjax.pipelines.language_config import GRIDS, PRESETS, LanguageExperiment
from llcjax.pipelines.language_corpus import Rows, load_rows
from llcjax.pipelines.language_parts import MAIN, PARTS
from llcjax.pipelines.language_tables import study_tables
from llcjax.plots import plot_attention
from llcjax.report import Extra
from llcjax.tasks.text import loss_of_next_tokens
from llcjax.types import LossOutput, Params, PRNGKey


class LanguageRun(ExperimentRun[LanguageExperiment]):
    """An attention-only language model in its folder."""

    name = "language"
    title = "Attention-only language model"
    chance_name = "uniform predictor"
    config_type = LanguageExperiment
    main = MAIN
    part_kinds = PARTS

    @functools.cached_property
    def rows(self) -> Rows:
        """Rows to train on and held-out ones."""
        return load_rows(self.experiment)

    def functions(self) -> Functions:
        """The model and its loss of the next token."""
        model, activations = self.experiment.model, self.experiment.activations
        init, apply = attention_only(model, activations)
        of_tokens = loss_of_next_tokens(attention_only_losses(model, activations, self.experiment.kernels))

        def loss(params: Params, tokens: Array) -> LossOutput:
            return of_tokens(params, tokens.astype(jnp.int32))  # on the device they have 16 bits

        return Functions(init, apply, loss)

    def training(self) -> Training:
        """Rows of the corpus, gathered on the device with replacement."""
        facts = {"model": as_dict(self.experiment.model), "rows": array_digest(self.rows.corpus.train)}
        return Training(self.loss, _gathered, self.rows.corpus.train, facts)

    @property
    def num_examples(self) -> int:
        """Rows whose loss is sampled."""
        return len(self.data())

    def data(self) -> Any:
        """The rows that it was trained on, whose loss it minimises, unless others are asked for."""
        return getattr(self.rows.corpus, self.experiment.swept_rows)

    @property
    def chance(self) -> float:
        """Loss of the uniform predictor."""
        return math.log(self.experiment.model.vocabulary)

    def analyses(self, seed: int, bank: CheckpointBank | SavedBank) -> Analyses:
        """What is measured on one seed beside the LLC, measured where it is not there yet."""
        # Nothing is rounded where speed does not matter.
        _, apply = attention_only(self.experiment.model)
        return analyse(
            self.experiment, bank, apply, self.rows, self.models, f"seed_{seed}",
            lambda kind: self._timed(f"{kind} of seed {seed}"),
        )  # fmt: skip

    def shown(self, measured: Analyses) -> dict[str, Any]:
        """Losses on repeats, and pictures of the attention of every head."""
        caption = f"Attention of each head (layer:head) at step {measured.attention.attrs['step']:,} in a held-out row."
        return {
            "further": {} if measured.repeats is None else {"repeats": measured.repeats},
            "extra": [Extra("attention", plot_attention(measured.attention), caption)],
        }

    def tables(self) -> tuple[Path, list[dict[str, Any]]]:
        """Tables and figures over all parts."""
        return study_tables(self)


def _gathered(key: PRNGKey, batch_size: int, rows: Array) -> Array:
    return rows[jax.random.randint(key, (batch_size,), 0, len(rows))]


__all__ = ["GRIDS", "PRESETS", "LanguageExperiment", "LanguageRun"]
