"""kmeans: clusters of a table's rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jobs.errors import InputError
from jobs.estimators.kmeans import KMeans
from jobs.estimators.kmeans_kernels import nearest
from jobs.job import Evaluation, Job
from jobs.pipelines import tabular
from jobs.pipelines.kmeans_tasks import assignments, counts_and_sample
from jobs.pipelines.tabular import Loaded, Prepared
from jobs.report.sections import Bars, Curves, Table

Floats = NDArray[np.float64]


def load(job: Job) -> Loaded:
    """Read and profile the columns."""
    return tabular.load(job)


def prepare(job: Job, loaded: Loaded) -> Prepared:
    """Impute, encode and standardise; all rows are used."""
    n, k = loaded.profile.n_rows, job.params.n_clusters
    if k > n:
        raise InputError(f"{job.spec.input.url}: {n} rows are fewer than params.n_clusters = {k}; lower it")
    return tabular.prepare(job, loaded, None, 0.0, job.params.standardise)


def fit(job: Job, prepared: Prepared) -> KMeans:
    """Cluster."""
    params = job.params
    model = KMeans(
        params.n_clusters,
        n_init=params.n_init,
        max_iter=params.max_iter,
        tol=params.tol,
        random_state=params.seed,
    )
    return model.fit(prepared.train.X)


def evaluate(job: Job, prepared: Prepared, model: KMeans) -> Evaluation:
    """Inertia, sizes, and the silhouette of a sample of rows (Rousseeuw 1987)."""
    n_rows = sum(prepared.train.n)
    share = min(1.0, job.params.silhouette_sample / n_rows)
    centres = model.cluster_centers_
    shared = job.share(centres, len(prepared.train.X))
    parts = [
        job.client.submit(counts_and_sample, *arrays, shared, job.params.seed, share, pure=False)
        for arrays in zip(prepared.train.X, prepared.train.rows, strict=True)
    ]
    found = job.wait(parts)
    sizes = np.sum([counts for counts, _ in found], axis=0)
    sample = np.concatenate([rows for _, rows in found])
    metrics: dict[str, float | int | str] = {
        "inertia": model.inertia_,
        "silhouette": _silhouette(sample, nearest(sample, centres)),
        "n_iter": model.n_iter_,
        "n_clusters": len(centres),
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
        "n_columns": model.n_features_in_,
        **prepared.counts,
    }
    original = _in_original_units(prepared, centres)
    sections: list[Any] = [
        Bars("Rows a cluster", [str(number) for number in range(len(centres))], sizes.tolist(), unit="rows"),
        Curves("Inertia", "iteration", "inertia", {"inertia": list(enumerate(map(float, model.history_), start=1))}),
        Table(
            "Centres",
            ["cluster", *prepared.encoder.names[:20]],
            [[str(number), *map(float, row[:20])] for number, row in enumerate(original)],
        ),
    ]
    return Evaluation("inertia", metrics, sections)


def write(job: Job, prepared: Prepared, model: KMeans, evaluation: Evaluation) -> None:
    """Write the centres in original units, model.json, and each row's cluster."""
    original = _in_original_units(prepared, model.cluster_centers_)
    centres = pd.DataFrame(original, columns=prepared.encoder.names)
    centres.insert(0, "cluster", np.arange(len(centres), dtype=np.int32))
    job.write_parquet("centres.parquet", centres)
    document = {"centres": model.cluster_centers_.tolist(), "encoding": prepared.encoder.document()}
    job.write_json("model.json", document)
    tabular.write_rows(job, prepared.train, "assignments", assignments, model.cluster_centers_)


def _silhouette(rows: Floats, labels: NDArray[np.int32]) -> float:
    """Mean silhouette of rows (m, p) with labels (m,); 0 where it is not defined."""
    from sklearn.metrics import silhouette_score

    n_labels = len(np.unique(labels))
    return float(silhouette_score(rows, labels)) if 2 <= n_labels < len(rows) else 0.0


def _in_original_units(prepared: Prepared, centres: Floats) -> Floats:
    original = centres.copy()
    q = len(prepared.encoder.numbers)
    if prepared.encoder.is_standardised:
        original[:, :q] = centres[:, :q] * prepared.encoder.scales + prepared.encoder.means
    return original
