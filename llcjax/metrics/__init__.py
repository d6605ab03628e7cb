"""Behavioural measures of each setting."""

from llcjax.metrics.regression import regression_metrics

__all__ = ["regression_metrics"]
