"""Tables larger than the workers' memory: the same results, within the limit, and the report says what it took."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Client, Worker

from benchmarks.data import readings
from jobs import cluster as jobs_cluster
from jobs import runner, storage
from jobs.artifacts import Manifest
from jobs.cluster import connected
from jobs.errors import InputError, SpecError
from jobs.estimators import blocks
from jobs.freed_memory import FreedMemory, give_freed_memory_back
from jobs.pipelines import tabular
from jobs.spec import parse
from tests.conftest import JobFactory
from tests.threads import threads


def spec_of(pipeline: str, path: Path, output: Path, params: dict[str, Any]) -> Any:
    return parse({"pipeline": pipeline, "params": params, "input": str(path), "output": str(output)})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(900, 3)), columns=list("abc"))
    frame["kind"] = rng.choice(["p", "q", None], 900)
    frame["y"] = frame["a"] - 2 * frame["b"] + (frame["kind"] == "p") + 0.1 * rng.normal(size=900)
    frame.loc[frame.index % 40 == 0, "c"] = np.nan
    # A spelling that Arrow takes for no number: its part is read as text after all.
    text = frame.to_csv(index=False)
    (tmp_path / "t.csv").write_text(text + "+1,2,3,p,0\n")
    return tmp_path / "t.csv"


@pytest.mark.parametrize(
    ("pipeline", "params"), [("linear_regression", {"target": "y"}), ("kmeans", {"n_clusters": 4, "drop": ["y"]})]
)
def test_partitions_that_are_read_again_give_what_kept_ones_give(
    pipeline: str, params: dict[str, Any], table: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params["blocksize_mb"] = 0.01
    kept = runner.run(spec_of(pipeline, table, tmp_path / "kept", params), client=client).manifest
    monkeypatch.setattr(tabular, "_SHARE_KEPT", 0.0)
    again = runner.run(spec_of(pipeline, table, tmp_path / "again", params), client=client).manifest
    assert again.metrics == pytest.approx(kept.metrics, rel=1e-9)
    assert all(client.run(lambda dask_worker: FreedMemory.name in dask_worker.plugins).values())


def test_an_input_that_changes_between_the_passes_is_refused(
    table: Path, job_factory: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabular, "_SHARE_KEPT", 0.0)
    job = job_factory("linear_regression", {"target": "y", "blocksize_mb": 0.01}, str(table))
    loaded = tabular.load(job, "y")
    with table.open("a") as file:
        file.write("1,2,3,p,4\n")
    with pytest.raises(InputError, match=r"t.csv: changed while it was read; run the job again"):
        tabular.prepare(job, loaded, tabular.numeric_target(job, loaded, "y"), 0.2, False)


def test_groups_of_blocks_fit_into_a_share_of_a_workers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with threads(2, memory_limit="1TiB") as client:
        futures = client.map(lambda number: np.full(1000, float(number)), range(40), pure=False)
        run = blocks.runner(futures)
        [groups] = run.grouped(futures)
        assert len(groups) == 2
        # Of 16 kB, two blocks of 8 kB and no third.
        monkeypatch.setattr(blocks, "_SHARE_OF_MEMORY", 16_500 / 2**40)
        [groups] = run.grouped(futures)
        assert max(map(len, groups)) <= 2
        assert sorted(future.key for group in groups for future in group) == sorted(future.key for future in futures)


@pytest.mark.parametrize(
    "memory", ["plenty", "-1GiB", "100MiB", "1e400GiB", "-1e400GiB", "9" * 400, "inf", "nan", "1e30GiB"]
)
def test_a_memory_that_is_no_size_or_too_small_is_a_wrong_spec(memory: str) -> None:
    with pytest.raises(SpecError, match=rf"--memory {memory}: not a size of 384 MiB or more"), connected(1, memory):
        pass


@pytest.mark.parametrize("memory", [None, "384MiB"])
@pytest.mark.parametrize("n_workers", [-1, 0, 1 + jobs_cluster.MEMORY_LIMIT // jobs_cluster.LEAST_MEMORY, 10**20])
def test_more_workers_than_the_machine_has_memory_for_are_a_wrong_spec(n_workers: int, memory: str | None) -> None:
    most = min(jobs_cluster.MEMORY_LIMIT // jobs_cluster.LEAST_MEMORY, 1024)
    said = rf"--workers {n_workers}: this machine has room for 1 to {most}, of 384 MiB or more each"
    with pytest.raises(SpecError, match=said), connected(n_workers, memory):
        pass


def test_as_many_workers_as_the_machine_has_memory_for_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    for limit, most in ((gib // 4, 1), (gib, 2), (3 * gib, 8), (10_000 * gib, 1024)):
        monkeypatch.setattr(jobs_cluster, "MEMORY_LIMIT", limit)
        assert jobs_cluster._n_workers(most) == most
        assert jobs_cluster._n_workers(None) == min(most, len(os.sched_getaffinity(0)))


def test_a_worker_with_little_memory_keeps_less_of_it_and_looks_at_it_as_often_as_dask_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"]
    for name in names:
        monkeypatch.delenv(name, raising=False)

    def settings() -> tuple[list[int], str]:
        interval = dask.config.get("distributed.worker.memory.monitor-interval")
        return [int(os.environ[name]) >> 20 for name in names], interval

    # One after the other in one process: what the first one's nanny has set is not taken for the user's wish.
    for memory, kept_mib, looks in (("512MiB", 8, "100ms"), ("4GiB", 32, "256ms")):
        with connected(1, memory) as client:
            assert list(client.run(settings).values()) == [([kept_mib, 2 * kept_mib, kept_mib], looks)]


def test_a_worker_that_has_freed_its_memory_goes_on() -> None:
    """A little of it lies between the rest, out of Dask's sight: glibc returns nothing, Dask pauses for good."""

    def fragment(dask_worker: Worker) -> int:
        process = psutil.Process()
        taken: list[bytes] = []
        while process.memory_info().rss < 440 << 20:
            taken += [b"x" * 100_000 for _ in range(50)]
        vars(dask_worker)["kept"] = taken[::50]
        taken.clear()
        return int(process.memory_info().rss)

    with connected(1, "512MiB") as client:
        give_freed_memory_back(client)
        [in_memory] = client.run(fragment).values()
        assert in_memory > 0.8 * (512 << 20)
        time.sleep(1)  # Dask looks every 100 ms
        assert client.submit(lambda: "done").result(timeout=20) == "done"
        [in_memory] = client.run(lambda: psutil.Process().memory_info().rss).values()
        assert in_memory < 0.6 * (512 << 20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_table_larger_than_all_memory_is_grouped_and_fitted_within_the_limit(tmp_path: Path) -> None:
    readings(tmp_path, 3.5e8)
    limit = 512 * 2**20
    found: dict[str, Manifest] = {}
    params: dict[str, dict[str, Any]] = {
        "group_by": {"by": ["station", "quality"], "aggregates": {"r00": ["mean", "std"]}},
        "linear_regression": {"target": "level", "drop": ["station"]},
    }
    for pipeline, given in params.items():
        spec = spec_of(pipeline, tmp_path / "readings.csv", tmp_path / "runs", given)
        found[pipeline] = manifest = runner.run(spec, n_workers=2, memory="512MiB").manifest
        assert manifest.n_workers_gone == 0
        assert len(manifest.workers) == 2
        assert all(worker.limit == limit and 0 < worker.peak <= limit for worker in manifest.workers)
    # 1.8 million rows of 23 numbers are 330 MB; two workers keep less than that.
    fitted = found["linear_regression"]
    assert sum(worker.n_written for worker in fitted.workers) > 1e8
    assert sum(worker.n_read for worker in fitted.workers) > 1e8
    model = json.loads(storage.read_bytes(next(file.url for file in fitted.files if file.name == "model.json")))
    coefficients = [model["coefficients"][f"r{place:02d}"] for place in range(20)]
    np.testing.assert_allclose(coefficients, np.sin(np.arange(20)), atol=0.01)
    assert found["group_by"].metrics["n_groups"] == 4000
    report = next(file.url for file in fitted.files if file.name == "report.html")
    text = storage.read_bytes(report).decode()
    for title in ("Memory of the workers", "written to disk, MiB", "Memory of all workers"):
        assert title in text
