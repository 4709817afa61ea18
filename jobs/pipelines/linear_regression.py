"""linear_regression: least squares on a table, from one pass of sufficient statistics over the training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.estimators.linear_regression import LinearRegression
from jobs.job import Evaluation, Job
from jobs.pipelines import tabular
from jobs.pipelines.tabular import Loaded, Prepared
from jobs.pipelines.tabular_tasks import line_predictions, line_sums
from jobs.report.sections import Note, Table

Floats = NDArray[np.float64]


def load(job: Job) -> Loaded:
    """Read and profile the columns."""
    return tabular.load(job, job.params.target)


def prepare(job: Job, loaded: Loaded) -> Prepared:
    """Impute, encode and split."""
    target = tabular.numeric_target(job, loaded, job.params.target)
    has_constant = job.params.fit_intercept
    return tabular.prepare(
        job, loaded, target, job.params.test_fraction, is_standardised=False, has_reference=has_constant
    )


def fit(job: Job, prepared: Prepared) -> LinearRegression:
    """Fit on the training rows."""
    return LinearRegression(fit_intercept=job.params.fit_intercept).fit(prepared.train.X, prepared.train.y)


def evaluate(job: Job, prepared: Prepared, model: LinearRegression) -> Evaluation:
    """R², RMSE and MAE on the test rows."""
    test = prepared.test
    coef = job.share(model.coef_, len(test.X))
    sums = [
        job.client.submit(line_sums, *arrays, coef, model.intercept_, prepared.target_mean, pure=False)
        for arrays in zip(test.X, test.y, strict=True)
    ]
    metrics = tabular.regression_metrics(job.wait(sums)) | {
        "r2_train": model.r2_,
        "n_train": model.n_samples_,
        "n_test": sum(test.n),
        "n_columns": model.n_features_in_,
        **prepared.counts,
    }
    rows: list[list[str | int | float]] = [
        [name, *map(float, figures)]
        for name, *figures in zip(
            prepared.encoder.names, model.coef_, model.standard_errors_, model.t_values_, strict=True
        )
    ]
    rows.insert(0, ["(intercept)", model.intercept_, model.intercept_standard_error_, _ratio(model)])
    sections: list[Any] = [Table("Coefficients", ["column", "coefficient", "standard error", "t"], rows)]
    if model.rank_ < model.n_features_in_:
        dependent = f"The columns have rank {model.rank_} of {model.n_features_in_}: some follow from others."
        sections.append(Note("Dependent columns", dependent + " There are no standard errors then."))
    return Evaluation("r2", metrics, sections)


def write(job: Job, prepared: Prepared, model: LinearRegression, evaluation: Evaluation) -> None:
    """Write model.json and the test rows' predictions."""
    names = prepared.encoder.names
    document = {
        "target": job.params.target,
        "intercept": model.intercept_,
        "coefficients": dict(zip(names, model.coef_.tolist(), strict=True)),
        "standard_errors": _finite(names, model.standard_errors_),
        "encoding": prepared.encoder.document(),
    }
    job.write_json("model.json", document)
    tabular.write_rows(job, prepared.test, "predictions", line_predictions, model.coef_, model.intercept_)


def _ratio(model: LinearRegression) -> float:
    error = model.intercept_standard_error_
    return model.intercept_ / error if error else float("nan")


def _finite(names: list[str], values: Floats) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in zip(names, values, strict=True)}
