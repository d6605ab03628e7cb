"""The in-context regression experiment: the steps that it chains, each skipped where it is finished."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llcjax.checkpoints import CheckpointBank, SavedBank
from llcjax.config import as_dict
from llcjax.keys import as_key
from llcjax.metrics.attention import head_means
from llcjax.models.icl_transformer import icl_transformer
from llcjax.pipelines.experiment_run import ExperimentRun, Functions, Training
from llcjax.pipelines.regression_analysis import Analyses, analyse
from llcjax.pipelines.regression_config import GRIDS, PRESETS, RegressionExperiment
from llcjax.pipelines.regression_parts import MAIN, PARTS
from llcjax.pipelines.regression_tables import study_tables
from llcjax.tasks.regression import squared_error


class RegressionRun(ExperimentRun[RegressionExperiment]):
    """In-context linear regression in its folder."""

    name = "regression"
    title = "In-context linear regression"
    config_type = RegressionExperiment
    main = MAIN
    part_kinds = PARTS

    def functions(self) -> Functions:
        """The transformer and its squared error."""
        return _functions(self.experiment)

    def training(self) -> Training:
        """Fresh sequences; without kernels, which would leave a GPU idle at a few seeds and small batches."""
        task, model = self.experiment.task, self.experiment.model
        return Training(self._exact().loss, task.sample, None, {"task": as_dict(task), "model": as_dict(model)})

    @property
    def num_examples(self) -> int:
        """Sequences of the fixed set."""
        return self.experiment.num_examples

    def data(self) -> Any:
        """The fixed set of sequences."""
        return self.experiment.task.sample(as_key(self.experiment.data_seed), self.experiment.num_examples)

    @property
    def chance(self) -> float:
        """Loss of the zero predictor."""
        return self.experiment.task.chance

    def analyses(self, seed: int, bank: CheckpointBank | SavedBank) -> Analyses:
        """What is measured on one seed beside the LLC, measured where it is not there yet."""
        exact = self._exact()
        return analyse(
            self.experiment, bank, (exact.apply, exact.loss), self.models, f"seed_{seed}",
            self.experiment.swept_steps(bank.steps, seed), timing=lambda kind: self._timed(f"{kind} of seed {seed}"),
        )  # fmt: skip

    def _exact(self) -> Functions:
        """Without kernels, which have no Hessians, and without rounding where speed does not matter."""
        return _functions(dataclasses.replace(self.experiment, kernels="xla", activations="float32"))

    def shown(self, measured: Analyses) -> dict[str, Any]:
        """Structure, attention, paths and curvature."""
        return {
            "further": {"structure": measured.structure, "attention": head_means(measured.attention)},
            "paths": measured.paths,
            "curvature": measured.curvature,
        }

    def tables(self) -> tuple[Path, list[dict[str, Any]]]:
        """Tables and figures over all parts."""
        return study_tables(self)


def _functions(experiment: RegressionExperiment) -> Functions:
    task = experiment.task
    init, apply = icl_transformer(
        experiment.model, task.num_tokens, task.token_width, experiment.kernels, experiment.activations
    )
    return Functions(init, apply, squared_error(apply))


__all__ = ["GRIDS", "PRESETS", "RegressionExperiment", "RegressionRun"]
