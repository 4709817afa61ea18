"""The cases: which work, on which data, against whom, and the bar that our side has to clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import agreement, data
from benchmarks.agreement import Agreement, Found

_ALS = {"rank": 64, "regularization": 30.0, "alpha": 2.0, "n_iterations": 10}
Check = Callable[[Found, Found, Path], Agreement]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes
    ----------
    name, title : str
    data : callable
        Fills a folder.
    peer : str
        A module of `benchmarks.sides`.
    work : str
        The case's name on both sides.
    bar : float
        Of the ratio of our median to theirs; at most, or at least where `is_higher_better`.
    agree : callable
        Says whether both did the same work.
    settings, peer_settings : mapping
        Of the work on our side, and on theirs.
    n : int
        Times that each side does it, alternating.
    peer_threads : int
        Of BLAS and OpenMP in the peer's process; we have one in each of two workers.
    unit : {"s", "MB/s", "RMSE", "MiB"}
        What is compared; the last two are no times but results, and their bar is for our value itself.
    ours : str
        The module of our side.
    """

    name: str
    title: str
    data: Callable[[Path], None]
    peer: str
    work: str
    bar: float
    agree: Check
    settings: Mapping[str, Any] = field(default_factory=dict)
    peer_settings: Mapping[str, Any] = field(default_factory=dict)
    n: int = 5
    peer_threads: int = 2
    unit: str = "s"
    ours: str = "ours"

    @property
    def is_higher_better(self) -> bool:
        """Whether the bar is the least that will do."""
        return self.unit == "MB/s"

    @property
    def found(self) -> str | None:
        """Name of what both sides found that is compared, where that is no time."""
        return {"RMSE": "rmse", "MiB": "peak"}.get(self.unit)

    def clears(self, ours: float, ratio: float) -> bool:
        """Return whether the bar is cleared by our value, or by its ratio to theirs."""
        if self.found:
            return ours <= self.bar
        return ratio >= self.bar if self.is_higher_better else ratio <= self.bar


CASES = (
    Case(
        "kmeans",
        "k-means 500,000 × 32, k = 16, same start, 10 iterations",
        data.clusters,
        "scikit_learn",
        "kmeans",
        1.3,
        agreement.same_clusters,
        n=9,
    ),
    Case(
        "kmeans_own_start",
        "k-means 500,000 × 32, k = 16, own start; scikit-learn: best of 10",
        data.clusters,
        "scikit_learn",
        "kmeans_own_start",
        1.0,
        agreement.as_good_clusters,
    ),
    Case(
        "kmeans_dask_ml",
        "k-means 50,000 × 20, k = 10, same start, 10 iterations",
        data.small_clusters,
        "dask_ml",
        "kmeans",
        1.0,
        agreement.wrong_clusters,
    ),
    Case(
        "linear_regression",
        "linear regression 1,000,000 × 50, float64",
        data.line,
        "scikit_learn",
        "linear_regression",
        0.2,
        agreement.same_line,
    ),
    Case(
        "linear_regression_dask_ml",
        "linear regression 1,000,000 × 50, float64",
        data.line,
        "dask_ml",
        "linear_regression",
        1.0,
        agreement.near_line,
    ),
    Case(
        "logistic_bio",
        "logistic regression, bio 145,751 × 74, same loss to 1e-6",
        data.bio,
        "scikit_learn",
        "logistic_regression",
        1.5,
        agreement.same_loss,
        {"tol": 1e-5},
        {"tol": 1e-7},
    ),
    Case(
        "logistic_newsgroups",
        "logistic regression, 20 Newsgroups TF-IDF, same loss to 1e-6",
        data.newsgroups_weights,
        "scikit_learn",
        "logistic_regression",
        1.5,
        agreement.same_loss,
        {"tol": 1e-5},
        {"tol": 1e-5},
    ),
    Case(
        "text_one_process",
        "text → TF-IDF, hashed, 20 Newsgroups × 10, one process each",
        data.newsgroups_ten_times,
        "scikit_learn",
        "tfidf",
        3.0,
        agreement.same_documents,
        {"n_workers": 0},
        peer_threads=1,
        unit="MB/s",
    ),
    Case(
        "text_two_workers",
        "text → TF-IDF, hashed, 20 Newsgroups × 10: two workers against one",
        data.newsgroups_ten_times,
        "ours",
        "tfidf",
        1.8,
        agreement.same_documents,
        {"n_workers": 2},
        {"n_workers": 1},
        peer_threads=1,
        n=15,
        unit="MB/s",
    ),
    Case(
        "als_implicit_synthetic",
        "implicit ALS, 0.7 M made interactions, rank 64, 10 iterations, CG",
        data.clicks,
        "implicit",
        "implicit_als",
        1.5,
        agreement.same_factors,
        _ALS,
        _ALS,
        n=9,
        peer_threads=1,  # it has threads of its own, and asks that BLAS have none
    ),
    Case(
        "als_implicit_ml100k",
        "implicit ALS, ML-100K (80 %), rank 64, 10 iterations, CG",
        data.movielens,
        "implicit",
        "implicit_als",
        1.5,
        agreement.as_good_lists,
        _ALS,
        _ALS,
        n=9,
        peer_threads=1,  # it has threads of its own, and asks that BLAS have none
    ),
    Case(
        "als_implicit_spark",
        "implicit ALS, 0.7 M made interactions, rank 64, 10 iterations",
        data.clicks,
        "spark",
        "implicit_als",
        0.1,
        agreement.same_factors,
        _ALS,
        _ALS,
    ),
    Case(
        "als_implicit_ml100k_spark",
        "implicit ALS, ML-100K (80 %), rank 64, 10 iterations",
        data.movielens,
        "spark",
        "implicit_als",
        0.1,
        agreement.as_good_lists,
        _ALS,
        _ALS,
    ),
    Case(
        "als_explicit_rmse",
        "explicit ALS, ML-100K, 5 folds; Spark: rank 10, penalty 0.1",
        data.movielens_folds,
        "spark",
        "explicit_als",
        0.917,
        agreement.nothing_more,
        n=1,
        unit="RMSE",
    ),
    Case(
        "group_by_4gb",
        "group-by of 4 GB of CSV, two workers of 512 MiB: peak of a worker",
        data.readings,
        "dask_dataframe",
        "group_by",
        512,
        agreement.same_groups,
        n=1,
        peer_threads=1,
        unit="MiB",
        ours="ours_out_of_core",
    ),
    Case(
        "linear_regression_4gb",
        "linear regression on 4 GB of CSV, two workers of 512 MiB: peak of a worker",
        data.readings,
        "dask_dataframe",
        "linear_regression",
        512,
        agreement.same_coefficients,
        n=1,
        peer_threads=1,
        unit="MiB",
        ours="ours_out_of_core",
    ),
)
