"""Params of the kmeans pipeline."""

from typing import ClassVar, Literal

from pydantic import Field

from jobs.spec.tabular import TableParams


class KMeansParams(TableParams):
    """Clusters of a table's rows: k-means‖ start, Lloyd's iterations."""

    of_fit: ClassVar[frozenset[str]] = frozenset({"n_clusters", "n_init", "max_iter", "tol"})
    directions: ClassVar[dict[str, Literal["max", "min"]]] = {"silhouette": "max", "inertia": "min"}

    n_clusters: int = Field(8, ge=1, description="Number of clusters.")
    standardise: bool = Field(True, description="Whether columns of numbers are scaled to variance 1 first.")
    n_init: int = Field(3, ge=1, le=10_000, description="Starts; the one of least inertia is kept.")
    max_iter: int = Field(300, ge=1, description="Iterations of a start at most.")
    tol: float = Field(
        1e-4, ge=0, description="A start ends when the centres move less than this share of the mean variance."
    )
    silhouette_sample: int = Field(2000, ge=2, le=20_000, description="Rows on which the silhouette is computed.")
