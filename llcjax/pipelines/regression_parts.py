"""The parts of the regression experiment that follow the published one: other settings, and other trainings.

Each is an experiment of its own in a subfolder `parts/NAME`, so that it is resumed and reported like the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llcjax.config import SweepConfig
from llcjax.pipelines.experiment_config import Part
from llcjax.pipelines.regression_config import RegressionExperiment

MAIN = "published"
"""Name of the first part, whose setting is the paper's."""


def calibrated_sweep(sweep: SweepConfig) -> SweepConfig:
    """The setting that `llcjax calibrate` recommended for the paper's models, whose chains stay in the basin."""
    return dataclasses.replace(
        sweep,
        n_beta=(66.67,),
        localization=(1500.0,),
        step_size=(5e-5,),
        num_chains=4,
        num_draws=700,
        num_burnin_steps=300,
        baseline="paired",
        per_position=False,
    )


def _calibrated(experiment: RegressionExperiment) -> RegressionExperiment:
    return dataclasses.replace(experiment, sweep=calibrated_sweep(experiment.sweep))


def _relative(experiment: RegressionExperiment) -> RegressionExperiment:
    # The localisation of the calibrated setting at the root mean square of the weights at step 40k, 0.14, and twice
    # and four times that; the step in the same units, for the largest of them.
    sweep = dataclasses.replace(
        calibrated_sweep(experiment.sweep), localization=(30.0, 60.0, 120.0), step_size=(1e-3,), num_chains=4
    )
    return dataclasses.replace(experiment, sweep=sweep, coordinates="relative", num_checkpoints=40, sweep_seeds=(0, 1))


def _trained(**changes: Mapping[str, Any]) -> Callable[[RegressionExperiment], RegressionExperiment]:
    """One model of its own, trained with changes to the task, the model or the training; calibrated setting."""

    def vary(experiment: RegressionExperiment) -> RegressionExperiment:
        parts = {name: dataclasses.replace(getattr(experiment, name), **fields) for name, fields in changes.items()}
        train = dataclasses.replace(parts.pop("train", experiment.train), num_seeds=1)
        return dataclasses.replace(
            _calibrated(experiment), **parts, train=train, sweep_seeds=(train.seed,), num_checkpoints=40
        )

    return vary


PARTS: dict[str, Part] = {
    "calibrated": Part("the setting of `llcjax calibrate`, local chains", _calibrated, False),
    "relative": Part("localisation in units of each tensor's size", _relative, False),
    "finite_tasks": Part("64 tasks instead of infinitely many", _trained(task={"num_tasks": 64}), True),
    "no_layer_norm": Part("no layer norms", _trained(model={"layer_norm": False}), True),
    "weight_decay": Part(
        "decoupled weight decay 0.01", _trained(train={"optimizer": "adamw", "weight_decay": 0.01}), True
    ),
    "gradient_noise": Part("noise of 0.001 on each gradient entry", _trained(train={"gradient_noise": 1e-3}), True),
}
