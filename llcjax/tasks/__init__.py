"""Tasks: where data come from."""

from llcjax.tasks.regression import RegressionTask, Sequences

__all__ = ["RegressionTask", "Sequences"]
