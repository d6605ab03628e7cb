"""The experiments by the name that the command line, the folders of runs and the recipes of sweeps give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llcjax.config import SweepConfig
from llcjax.pipelines import language, regression
from llcjax.pipelines.experiment_config import PIPELINE, ExperimentConfig
from llcjax.pipelines.experiment_run import ExperimentRun


class Study(NamedTuple):
    """An experiment: its run, its presets, and the grid that `llcjax calibrate` takes for each."""

    run: type[ExperimentRun[Any]]
    presets: Mapping[str, ExperimentConfig]
    grids: Mapping[str, SweepConfig]


EXPERIMENTS: dict[str, Study] = {
    "regression": Study(regression.RegressionRun, regression.PRESETS, regression.GRIDS),
    "language": Study(language.LanguageRun, language.PRESETS, language.GRIDS),
}


def study_of(config: Mapping[str, Any]) -> Study:
    """The experiment of a config of a folder or of a recipe; those of earlier versions are regressions.

    Raises:
        ValueError: an experiment that this version does not know.
    """
    name = config.get(PIPELINE, "regression")
    if name not in EXPERIMENTS:
        raise ValueError(f"{name!r} is no experiment of this version of llcjax; it has {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]
