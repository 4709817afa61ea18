"""The cases as Spark does them, on local[2]; its data frames are cached before the clock starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession
from scipy import sparse

from benchmarks.sides.serve import Work, serve


def _session() -> SparkSession:
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.driver.memory", "6g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def _cached(frame: pd.DataFrame) -> Any:
    cached = _session().createDataFrame(frame).repartition(2).cache()
    cached.count()
    return cached


def implicit_als(folder: Path, rank: int, regularization: float, alpha: float, n_iterations: int) -> Work:
    matrix = sparse.load_npz(folder / "interactions.npz").tocoo()
    frame = _cached(pd.DataFrame({"user": matrix.row, "item": matrix.col, "rating": matrix.data.astype("float32")}))
    # Spark multiplies the penalty of a row by its number of values; what that changes in time is nothing.
    estimator = ALS(
        rank=rank,
        maxIter=n_iterations,
        regParam=regularization / (matrix.nnz / matrix.shape[0]),
        alpha=alpha,
        implicitPrefs=True,
        numUserBlocks=2,
        numItemBlocks=2,
        seed=0,
    )

    def fit() -> Any:
        model = estimator.fit(frame)
        model.userFactors.count()
        model.itemFactors.count()
        return model

    return fit, lambda model: {
        "users": _factors(model.userFactors, matrix.shape[0]),
        "items": _factors(model.itemFactors, matrix.shape[1]),
    }


def explicit_als(folder: Path) -> Work:
    ratings = pd.read_csv(folder / "ratings.csv")
    _session()  # an estimator cannot be made without one

    def folds() -> list[float]:
        errors = []
        for fold in sorted(ratings.fold.unique()):
            train, test = ratings[ratings.fold != fold], ratings[ratings.fold == fold]
            # Spark's own example and default penalty; unseen users and items get the mean, as with us.
            model = ALS(rank=10, maxIter=10, regParam=0.1, userCol="user", itemCol="item", seed=0).fit(_cached(train))
            found = model.transform(_cached(test)).fillna(float(train.rating.mean()), subset=["prediction"])
            errors.append(RegressionEvaluator(labelCol="rating").evaluate(found) ** 2)
        return errors

    return folds, lambda errors: {"rmse": float(np.sqrt(np.mean(errors)))}


def _factors(frame: Any, n: int) -> np.ndarray:
    found = frame.toPandas()
    factors = np.zeros((n, len(found.features.iloc[0])))
    factors[found.id.to_numpy()] = np.stack(found.features.to_numpy())
    return factors


if __name__ == "__main__":
    serve([implicit_als, explicit_als], ["pyspark", "numpy"])
