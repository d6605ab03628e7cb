"""Known answers: closed forms and exact numbers that samplers and estimators must reproduce, each with its source."""

from llcjax.reference.crossings import LearningCoefficient, crossing_llc, monomial_sum_llc
from llcjax.reference.deep_linear import deep_linear_llc, reduced_rank_llc
from llcjax.reference.deep_linear_local import generic_ranks, local_deep_linear_llc, numerical_ranks
from llcjax.reference.gaussian import covariance_llc, quadratic_llc, sgld_variance, stationary_covariance
from llcjax.reference.quadrature import quadrature_llc
from llcjax.reference.teachers import (
    SIZE_CLASSES,
    DeepLinearCase,
    DeepLinearTask,
    SizeClass,
    deep_linear_case,
    deep_linear_task,
    largest_curvature,
    random_deep_linear,
)

__all__ = [
    "SIZE_CLASSES",
    "DeepLinearCase",
    "DeepLinearTask",
    "LearningCoefficient",
    "SizeClass",
    "covariance_llc",
    "crossing_llc",
    "deep_linear_case",
    "deep_linear_llc",
    "deep_linear_task",
    "generic_ranks",
    "largest_curvature",
    "local_deep_linear_llc",
    "monomial_sum_llc",
    "numerical_ranks",
    "quadratic_llc",
    "quadrature_llc",
    "random_deep_linear",
    "reduced_rank_llc",
    "sgld_variance",
    "stationary_covariance",
]
