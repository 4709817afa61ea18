"""Tables larger than memory as Daskyard's jobs do them, on two workers of one thread and 512 MiB each.

Workers import this module too, as the main one: what only the runner needs is imported in the functions.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides.serve import Work, serve

LIMIT = "512MiB"
AGGREGATES = {"r00": ["mean", "std", "min", "max"], "r03": ["sum", "count"], "level": ["mean", "std"]}


def group_by(folder: Path) -> Work:
    params = {"by": ["station", "quality"], "aggregates": AGGREGATES}

    def described(told: dict[str, Any]) -> dict[str, Any]:
        import pyarrow.parquet as pq

        files = [file.url for file in told["manifest"].files if file.name.startswith("groups/")]
        table = pq.read_table(files[0]) if len(files) == 1 else pq.ParquetDataset(files).read()
        columns = table.sort_by([("station", "ascending"), ("quality", "ascending")]).select(
            range(3, table.num_columns)
        )
        return {"groups": np.column_stack([column.to_numpy() for column in columns.columns]), **_memory(told)}

    return lambda: _run(folder, "group_by", params), described


def linear_regression(folder: Path) -> Work:
    """Also sets a fifth of the rows aside, and writes what is predicted for them."""
    params = {"target": "level", "drop": ["station"]}

    def described(told: dict[str, Any]) -> dict[str, Any]:
        [url] = [file.url for file in told["manifest"].files if file.name == "model.json"]
        model = json.loads(Path(url).read_text())
        return {"coef": np.array([*model["coefficients"].values(), model["intercept"]]), **_memory(told)}

    return lambda: _run(folder, "linear_regression", params), described


def _run(folder: Path, pipeline: str, params: dict[str, Any]) -> dict[str, Any]:
    from jobs import runner
    from jobs.spec import parse

    output = folder / "runs"
    shutil.rmtree(output, ignore_errors=True)
    spec = parse({"pipeline": pipeline, "params": params, "input": str(folder / "readings.csv"), "output": str(output)})
    start = time.perf_counter()
    manifest = runner.run(spec, n_workers=2, memory=LIMIT).manifest
    return {"manifest": manifest, "seconds": time.perf_counter() - start}


def _memory(told: dict[str, Any]) -> dict[str, Any]:
    workers = told["manifest"].workers
    return {
        "peak": max(worker.peak for worker in workers) / 2**20,
        "spilled": sum(worker.n_written for worker in workers) / 2**20,
        "n_lost": told["manifest"].n_workers_gone,
        "seconds": told["seconds"],
    }


if __name__ == "__main__":
    serve([group_by, linear_regression], ["daskyard", "dask", "distributed", "pandas", "pyarrow", "numpy"])
