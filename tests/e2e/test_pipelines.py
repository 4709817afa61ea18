"""Do the MLJobs in examples/ run as they are, and do they find what a laptop finds?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import kube
import pytest
import yaml
from distributed import Client, LocalCluster
from mljobs_of import delete, submitted, wait_end

from controller.resources import MLJobSpec
from jobs import runner, spec, storage
from jobs.artifacts import Manifest, read_manifest

MANIFESTS = sorted((kube.ROOT / "examples/mljobs").glob("*.yaml"))
# Tables and text are the same to the last digits on any number of workers; images differ where the processor's
# bfloat16 rounds in another order.
CLOSE = {"image_classification": 0.02}
# Of the machine or the moment, not of the data.
TIMING = ("_per_s", "_seconds", "_s", "efficiency", "_share", "goodput")


@pytest.fixture(scope="module")
def laptop(pytestconfig: pytest.Config) -> Iterator[Callable[[str], Manifest]]:
    """What an example finds on this machine: now, or when `make acceptance` ran it with the very same code."""
    git = ("git", "-C", str(kube.ROOT))
    is_clean = not kube.run(*git, "status", "--porcelain")
    head = kube.run(*git, "rev-parse", "HEAD").strip()
    kept = map(Manifest.model_validate, pytestconfig.cache.get("daskyard/demo", []))
    found = [run for run in kept if is_clean and run.git_commit == head]
    with ExitStack() as stack:

        @cache
        def client() -> Client:
            local = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            return stack.enter_context(Client(stack.enter_context(local)))

        def manifest(name: str) -> Manifest:
            job = spec.load(kube.ROOT / f"examples/{name}.yaml", (f"run_id=laptop-{name.replace('_', '-')}",))
            params = job.params.model_dump(mode="json")
            for run in found:
                if (run.pipeline, run.spec["params"]) == (job.pipeline, params):
                    return run
            storage.remove_tree(storage.join(job.output, job.name))
            return runner.run(job, client=client()).manifest

        yield manifest


def test_there_is_an_mljob_for_each_pipeline() -> None:
    pipelines = {_job_of(path.stem).pipeline for path in MANIFESTS}
    assert pipelines == set(spec.PIPELINES)


@pytest.mark.parametrize("name", [path.stem for path in MANIFESTS])
def test_mljob_succeeds_with_the_laptops_metrics(name: str, laptop: Callable[[str], Manifest]) -> None:
    job, mljob = _job_of(name), yaml.safe_load((kube.ROOT / f"examples/mljobs/{name}.yaml").read_text())
    run_url = storage.join(job.output, job.name)
    storage.remove_tree(run_url)
    with submitted(mljob) as release:
        expected = laptop(name)  # while its pods come
        said = wait_end(release)
        assert said["phase"] == "Succeeded", said
        assert (said["runUrl"], said["progress"]) == (run_url, 100)
        assert [a["logs"] for a in said["attempts"]] == ["Saved"]
        committed = read_manifest(run_url)
        # What is null is not there in a status.
        told = {name: value for name, value in committed.metrics.items() if value is not None}
        assert said["metrics"] == pytest.approx(told, nan_ok=True)
    for file in committed.files:
        assert len(storage.read_bytes(file.url)) == file.size
    assert _comparable(committed) == pytest.approx(
        _comparable(expected), rel=CLOSE.get(job.pipeline, 1e-6), abs=CLOSE.get(job.pipeline, 1e-9)
    )
    assert committed.metrics.keys() == expected.metrics.keys()


def test_make_submit_follows_a_job_to_its_end() -> None:
    storage.remove_tree("s3://demo/runs/submitted")
    command = ("make", "--no-print-directory", "-C", str(kube.ROOT), "submit", "JOB=examples/california.yaml")
    try:
        said = kube.run(*command, "NAME=submitted", timeout_s=180)
        columns = kube.kubectl("get", "mljobs").splitlines()
    finally:
        delete("submitted")
    assert "r2" in said
    assert "s3://demo/runs/submitted" in said
    assert columns[0].split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "ATTEMPT", "REASON", "AGE"]
    assert columns[1].split()[:5] == ["submitted", "Succeeded", "100", "1", "Committed"]


@cache
def _job_of(name: str) -> spec.JobSpec:
    mljob = yaml.safe_load((kube.ROOT / f"examples/mljobs/{name}.yaml").read_text())
    return MLJobSpec.model_validate(mljob["spec"]).job_spec(mljob["metadata"]["name"])


def _comparable(manifest: Manifest) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in manifest.metrics.items()
        if not isinstance(value, str) and not name.endswith(TIMING) and math.isfinite(value)
    }
