"""Tables larger than memory as dask.dataframe does them, on two workers of one thread and 512 MiB each."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster

from benchmarks.sides.serve import Work, serve

LIMIT = "512MiB"
READINGS = [f"r{place:02d}" for place in range(20)]
_DTYPES = {"station": "str", "quality": "str", **dict.fromkeys([*READINGS, "level"], "float64")}


def group_by(folder: Path) -> Work:
    def work() -> dict[str, Any]:
        with _watched(folder) as (frame, told):
            groups = frame.groupby(["station", "quality"], dropna=False)
            found = groups.agg(
                {"r00": ["mean", "std", "min", "max"], "r03": ["sum", "count"], "level": ["mean", "std"]}
            )
            told["table"] = found.compute().sort_index()
        return told

    return work, _grouped


def linear_regression(folder: Path) -> Work:
    def work() -> dict[str, Any]:
        with _watched(folder) as (frame, told):
            meta = pd.Series([], dtype=object)
            gram = sum(frame.map_partitions(_gram, meta=meta).compute())
            told["coef"] = np.linalg.solve(gram[:-1, :-1], gram[:-1, -1])
        return told

    return work, lambda told: {name: told[name] for name in ("coef", "peak", "seconds", "n_lost")}


def _gram(frame: pd.DataFrame) -> pd.Series:
    quality = frame["quality"].fillna("missing")
    dummies = [(quality == kind).to_numpy(dtype=float) for kind in ("good", "poor", "missing")]
    columns = np.column_stack([frame[READINGS].to_numpy(), *dummies, np.ones(len(frame)), frame["level"].to_numpy()])
    return pd.Series([columns.T @ columns])


def _grouped(told: dict[str, Any]) -> dict[str, Any]:
    values = told["table"].to_numpy(float)
    return {"groups": values, "peak": told["peak"], "seconds": told["seconds"], "n_lost": told["n_lost"]}


@contextlib.contextmanager
def _watched(folder: Path) -> Any:
    """Yield the table and a dict, into which go the workers' peak in MiB, those lost, and seconds."""
    told: dict[str, Any] = {}
    start = time.perf_counter()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        before = set(client.run(os.getpid).values())
        frame = dd.read_csv(str(folder / "readings.csv"), blocksize=8_000_000, dtype=_DTYPES)
        yield frame, told
        told["n_lost"] = len(before - set(client.run(os.getpid).values()))
        told["peak"] = max(client.run(_peak).values())
    told["seconds"] = time.perf_counter() - start


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    serve([group_by, linear_regression], ["dask", "distributed", "pandas", "pyarrow", "numpy"])
