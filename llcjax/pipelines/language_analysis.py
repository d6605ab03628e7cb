"""What is measured on the checkpoints of one language model beside the LLC, kept in the folder of the run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr

from llcjax.checkpoints import CheckpointBank, SavedBank
from llcjax.config import array_digest, as_dict
from llcjax.metrics.language import language_metrics
from llcjax.metrics.repeats import repeat_metrics
from llcjax.models.attention_only import attention_patterns
from llcjax.pipelines.language_config import LanguageExperiment
from llcjax.pipelines.language_corpus import Rows
from llcjax.pipelines.run_folder import kept
from llcjax.types import ApplyFn

_SHOWN = 48
"""Tokens of the row whose attention is drawn."""


class Analyses(NamedTuple):
    """Measures of one model over its checkpoints."""

    behaviour: xr.Dataset
    attention: xr.Dataset
    """Of every head at the last checkpoint, on the first tokens of one held-out row."""
    repeats: xr.Dataset | None
    """Of the synthetic language alone."""


def analyse(
    experiment: LanguageExperiment,
    bank: CheckpointBank | SavedBank,
    apply: ApplyFn,
    rows: Rows,
    folder: Path,
    name: str,
    timing: Callable[[str], AbstractContextManager[None]],
) -> Analyses:
    """Measures a bank, or reads what was measured before.

    Args:
        experiment: the configuration.
        bank: all checkpoints of one model; read where something is missing.
        apply: the model.
        rows: what it was trained on, and what it was not.
        folder: of the run; measures are kept in `folder/MEASURE/name`.
        name: of the model.
        timing: context, by name, in which each measure that is missing is made.
    """
    corpus, held_out = rows.corpus, rows.corpus.held_out[: experiment.num_test_rows]
    whole = functools.cache(bank.load)
    identity = (bank.fingerprint(), as_dict(experiment.model), *map(array_digest, (corpus.train, held_out)))

    def measures(kind: str, make: Callable[[], xr.Dataset], *facts: object) -> xr.Dataset:
        def timed() -> xr.Dataset:
            with timing(kind):
                return make()

        return kept(folder / kind / name, (*identity, *facts), timed)

    def behaviour() -> xr.Dataset:
        model, count = experiment.model, experiment.num_probes
        return language_metrics(apply, model, whole(), corpus.train, held_out, num_probes=count)

    def repeats() -> xr.Dataset:
        return repeat_metrics(apply, experiment.synthetic, whole())

    synthetic = experiment.source == "synthetic"
    return Analyses(
        behaviour=measures("metrics", behaviour, experiment.num_probes),
        attention=measures("attention", lambda: _pictures(experiment, whole(), held_out[0], rows.word)),
        repeats=measures("repeats", repeats, as_dict(experiment.synthetic)) if synthetic else None,
    )


def _pictures(
    experiment: LanguageExperiment, bank: CheckpointBank, row: np.ndarray, word: Callable[[int], str]
) -> xr.Dataset:
    """What each head attends to at the last checkpoint; tokens by their place and by what they say."""
    shown = row[:_SHOWN]
    patterns = attention_patterns(
        experiment.model, bank.checkpoint(len(bank) - 1), jnp.asarray(shown[None], jnp.int32)
    )[:, 0]
    return xr.Dataset(
        {"attention": (("layer", "head", "token", "key"), np.asarray(patterns))},
        attrs={"step": int(bank.steps[-1]), "words": [word(int(token)) for token in shown]},
    )
