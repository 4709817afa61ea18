"""The runner commits a job once and says by the class of its error whether another try is worth it."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from jobs import runner, storage
from jobs.artifacts import read_manifest
from jobs.errors import InputError, OutputError, SpecError, StorageMissingError, WorkersLostError
from jobs.job import Evaluation, Job
from jobs.listener import Listener
from jobs.report.sections import Note
from jobs.spec import JobSpec, Params, parse
from jobs.spec import job as spec_job
from jobs.workers import workers_of
from tests.conftest import files_below


class CountParams(Params):
    """Counts characters: the smallest pipeline there is."""

    words: tuple[str, ...] = ("a", "bb")


class Pipelines:
    """A pipeline whose `fit` the test chooses."""

    def __init__(self) -> None:
        self.fit: Callable[[Job, list[str]], Any] = lambda job, words: sum(job.map(len, words))

    def module(self) -> types.ModuleType:
        module: Any = types.ModuleType("jobs.pipelines.count")
        module.load = self.load
        module.prepare = lambda job, words: words
        module.fit = lambda job, words: self.fit(job, words)
        module.evaluate = lambda job, words, total: Evaluation("total", {"total": total}, [Note("n", "t")])
        module.write = lambda job, words, total, evaluation: job.write_json("model.json", {"total": total})
        return module

    @staticmethod
    def load(job: Job) -> list[str]:
        job.n_rows = len(job.params.words)
        return list(job.params.words)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipelines:
    pipelines = Pipelines()
    monkeypatch.setitem(spec_job.PIPELINES, "count", CountParams)
    monkeypatch.setitem(sys.modules, "jobs.pipelines.count", pipelines.module())
    return pipelines


@pytest.fixture
def spec(pipeline: Pipelines, tmp_path: Path) -> JobSpec:
    return parse({"pipeline": "count", "input": "none", "output": str(tmp_path / "runs")})


class Recorder(Listener):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def stage_started(self, name: str, index: int, n_stages: int) -> None:
        self.calls.append((name, index, n_stages))

    def progress(self, stage: str, done: float, total: float, unit: str) -> None:
        self.calls.append((stage, done, total, unit))


def test_a_run_writes_its_files_and_one_manifest(spec: JobSpec, client: Client) -> None:
    recorder = Recorder()
    result = runner.run(spec, client=client, listener=recorder)
    manifest = read_manifest(result.run_url)
    assert not result.was_committed
    assert manifest.metrics == {"total": 3}
    assert (manifest.n_rows, manifest.n_workers, manifest.seed) == (2, 2, 0)
    assert [stage.name for stage in manifest.stages] == list(runner.STAGES)
    assert [file.name for file in manifest.files] == ["dask-report.html", "model.json", "report.html", "spec.json"]
    assert parse(json.loads(storage.read_bytes(manifest.files[-1].url))) == spec
    assert ("fit", 2, 5) in recorder.calls
    assert ("fit", 2, 2, "partitions") in recorder.calls


def test_a_committed_run_is_not_run_again(spec: JobSpec, client: Client, pipeline: Pipelines) -> None:
    runner.run(spec, client=client)
    before = files_below(spec.output)
    pipeline.fit = lambda job, words: 1 / 0
    result = runner.run(spec, client=client)
    assert result.was_committed
    assert result.manifest.metrics == {"total": 3}
    assert files_below(spec.output) == before


def test_a_run_id_that_holds_another_spec_is_refused_and_kept(
    pipeline: Pipelines, tmp_path: Path, client: Client
) -> None:
    content = {"pipeline": "count", "input": "none", "output": str(tmp_path / "runs"), "run_id": "mine"}
    runner.run(parse(content), client=client)
    before = files_below(content["output"])
    with pytest.raises(OutputError, match="mine: holds a run of another spec; choose another run_id or output"):
        runner.run(parse({**content, "params": {"words": ["c"]}}), client=client)
    assert files_below(content["output"]) == before


def test_a_run_that_lost_the_race_takes_the_winners_result(spec: JobSpec, client: Client, pipeline: Pipelines) -> None:
    def fit_while_another_run_commits(job: Job, words: list[str]) -> int:
        pipeline.fit = lambda job, words: 3
        runner.run(spec, client=client)
        return 4

    pipeline.fit = fit_while_another_run_commits
    result = runner.run(spec, client=client)
    assert result.was_committed
    assert result.manifest.metrics == {"total": 3}
    assert len(list((Path(result.run_url) / "attempts").iterdir())) == 1


@pytest.mark.parametrize("error", [InputError("bad row"), ValueError("a bug"), KeyboardInterrupt()])
def test_a_failed_run_leaves_nothing_behind(
    error: BaseException, spec: JobSpec, client: Client, pipeline: Pipelines
) -> None:
    def fail(job: Job, words: list[str]) -> None:
        job.write_json("half.json", {})
        raise error

    pipeline.fit = fail
    with pytest.raises(type(error)):
        runner.run(spec, client=client)
    assert files_below(spec.output) == {}


def test_an_error_on_a_worker_comes_back_as_itself(spec: JobSpec, client: Client, pipeline: Pipelines) -> None:
    def bad(word: str) -> None:
        raise InputError(f"{word}: wrong; mend it")

    pipeline.fit = lambda job, words: job.map(bad, words)
    with pytest.raises(InputError, match="wrong; mend it"):
        runner.run(spec, client=client)


def test_a_task_that_kills_its_workers_is_worth_another_try(spec: JobSpec, pipeline: Pipelines) -> None:
    def die(word: str) -> None:
        import os

        os._exit(1)

    pipeline.fit = lambda job, words: job.map(die, words[:1])
    with pytest.raises(WorkersLostError, match="died while they ran die") as caught:
        runner.run(spec, n_workers=1)
    assert caught.value.exit_code == 75
    assert files_below(spec.output) == {}


def test_an_output_that_cannot_be_written_ends_the_run_before_its_work(
    pipeline: Pipelines, s3: str, client: Client
) -> None:
    pipeline.fit = lambda job, words: 1 / 0
    spec = parse({"pipeline": "count", "input": "none", "output": "s3://no-such-bucket-here/runs"})
    with pytest.raises(StorageMissingError, match="no such bucket; create it or correct the URL"):
        runner.run(spec, client=client)


def test_workers_of_ones_own_and_a_running_cluster_exclude_each_other(
    spec: JobSpec, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    with dask.config.set({"scheduler-address": client.scheduler.address}):
        assert runner.run(spec).manifest.n_workers == 2
        with pytest.raises(SpecError, match="--workers: the cluster that DASK_SCHEDULER_ADDRESS names"):
            runner.run(parse({**spec.model_dump(mode="json"), "run_id": "b"}), n_workers=3)


def test_memory_that_workers_do_not_share_is_refused(pipeline: Pipelines) -> None:
    with pytest.raises(SpecError, match="output: memory://runs is the memory of one process"):
        runner.run(parse({"pipeline": "count", "input": "none", "output": "memory://runs"}))


def test_workers_are_counted_while_the_client_refreshes_its_own_view(client: Client) -> None:
    """The client's own refresh asks for no workers; it must not be taken for the answer."""

    async def refresh() -> None:
        for _ in range(300):
            await client._update_scheduler_info()

    background = asyncio.run_coroutine_threadsafe(refresh(), client.loop.asyncio_loop)
    counts = [len(workers_of(client)) for _ in range(200)]
    background.result(timeout=60)
    assert set(counts) == {2}
