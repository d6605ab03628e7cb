"""Whole experiments: the configs with their presets, and the few lines that chain their steps."""

from llcjax.pipelines.experiments import EXPERIMENTS, Study
from llcjax.pipelines.language import LanguageExperiment, LanguageRun
from llcjax.pipelines.regression import RegressionExperiment, RegressionRun

__all__ = ["EXPERIMENTS", "LanguageExperiment", "LanguageRun", "RegressionExperiment", "RegressionRun", "Study"]
