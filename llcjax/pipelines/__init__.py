"""Whole experiments: the configs with their presets, and the few lines that chain their steps."""

from llcjax.pipelines.regression import RegressionExperiment, RegressionRun

__all__ = ["RegressionExperiment", "RegressionRun"]
