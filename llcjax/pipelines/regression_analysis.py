"""What is measured on the checkpoints of one trained model beside the LLC; each measure is kept in the run's folder."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Int

from llcjax.checkpoints import CheckpointBank, SavedBank
from llcjax.config import as_dict
from llcjax.curvature import curvature
from llcjax.keys import as_key
from llcjax.metrics.attention import attention_metrics
from llcjax.metrics.regression import regression_metrics
from llcjax.metrics.structure import structure_metrics
from llcjax.models.icl_transformer import icl_internals
from llcjax.pipelines.regression_config import RegressionExperiment
from llcjax.pipelines.run_folder import kept
from llcjax.tasks.regression import tokens
from llcjax.trajectory import path_metrics
from llcjax.types import ApplyFn, LossFn

_SEED = 3_000_003
"""Of the fixed sequences of attention and paths; away from the seeds of training and metrics."""


class Analyses(NamedTuple):
    """Measures of one model over its checkpoints."""

    behaviour: xr.Dataset
    structure: xr.Dataset
    attention: xr.Dataset
    paths: xr.Dataset
    curvature: xr.Dataset | None
    """At the swept checkpoints; None where it is left out."""


def analyse(
    experiment: RegressionExperiment,
    bank: CheckpointBank | SavedBank,
    functions: tuple[ApplyFn, LossFn],
    folder: Path,
    name: str,
    swept: Int[np.ndarray, " checkpoint"],
    *,
    timing: Callable[[str], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Analyses:
    """Measures a bank, or reads what was measured before.

    Args:
        experiment: the configuration.
        bank: all checkpoints of one model; read where something is missing.
        functions: the model and its loss.
        folder: of the run; measures are kept in `folder/MEASURE/name`.
        name: of the model.
        swept: steps of the curvature.
        timing: context, by name, in which each measure that is missing is made.
    """
    (apply, loss), config, task = functions, experiment.analysis, experiment.task
    inspect = icl_internals(experiment.model, task.num_tokens, task.token_width)
    inputs = functools.cache(lambda: tokens(task.sample(as_key(_SEED), config.num_sequences)))
    whole = functools.cache(bank.load)
    identity = (bank.fingerprint(), as_dict(task), as_dict(experiment.model))

    def attention() -> xr.Dataset:
        held = inputs()
        # The token of the last y is never used.
        return attention_metrics(lambda params: inspect(params, held).attention[..., :-1, :-1], whole())

    def paths() -> xr.Dataset:
        return path_metrics(
            apply, lambda params, x: inspect(params, x).stream, whole(), inputs(), num_hidden_inputs=sizes[1]
        )

    def measures(kind: str, make: Callable[[], xr.Dataset], *facts: object) -> xr.Dataset:
        def timed() -> xr.Dataset:
            with timing(kind):
                return make()

        return kept(folder / kind / name, (*identity, *facts), timed)

    count, sizes = experiment.num_test_sequences, (config.num_sequences, config.num_hidden_sequences)
    some = np.unique(swept).tolist()
    return Analyses(
        behaviour=measures("metrics", lambda: regression_metrics(apply, whole(), task, num_sequences=count), count),
        structure=measures("structure", lambda: structure_metrics(whole())),
        attention=measures("attention", attention, sizes[0]),
        paths=measures("paths", paths, *sizes),
        curvature=None
        if config.num_probes == 0
        else measures(
            # Parts that share models may look at more or fewer of their checkpoints.
            f"curvature_{len(some)}",
            lambda: curvature(
                loss,
                whole().at_steps(some),
                task.sample,
                num_probes=config.num_probes,
                batch_size=config.probe_batch_size,
                num_batches=config.num_lanczos_batches,
                eigenvalue_batch_size=config.lanczos_batch_size,
                num_steps=config.num_lanczos_steps,
            ),
            some,
            as_dict(config),
        ),
    )
