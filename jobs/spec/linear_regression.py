"""Params of the linear_regression pipeline."""

from jobs.spec.base import Params


class LinearRegressionParams(Params):
    """Placeholder until the pipeline's author writes it."""
