"""Params of the linear_regression pipeline."""

from typing import ClassVar, Literal

from pydantic import Field

from jobs.spec.tabular import TableParams


class LinearRegressionParams(TableParams):
    """Least squares on a table, with standard errors and t values."""

    directions: ClassVar[dict[str, Literal["max", "min"]]] = {"r2": "max", "rmse": "min", "mae": "min"}

    target: str = Field(min_length=1, description="Column to predict, of numbers.")
    fit_intercept: bool = Field(True, description="Whether the model has a constant.")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of rows set aside for the test.")
