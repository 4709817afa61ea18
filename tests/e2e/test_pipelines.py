"""Do the manifests in examples/ run as they are, and do they find what a laptop finds?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import kube
import pytest
import yaml
from distributed import Client, LocalCluster

from jobs import runner, spec, storage
from jobs.artifacts import Manifest, read_manifest

MANIFESTS = sorted((kube.ROOT / "examples/kind").glob("*.yaml"))
# Tables and text are the same to the last digits on any number of workers; images differ where the processor's
# bfloat16 rounds in another order.
CLOSE = {"image_classification": 0.02}
# Of the machine or the moment, not of the data.
TIMING = ("_per_s", "_seconds", "_s", "efficiency", "_share", "goodput")


@pytest.fixture(scope="module")
def laptop() -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client


def test_there_is_a_manifest_for_each_pipeline() -> None:
    pipelines = {_job_of(path.stem).pipeline for path in MANIFESTS}
    assert pipelines == set(spec.PIPELINES)


@pytest.mark.parametrize("name", [path.stem for path in MANIFESTS])
def test_manifest_ends_successful_with_the_laptops_metrics(name: str, laptop: Client) -> None:
    job = _job_of(name)
    run_url = storage.join(job.output, job.name)
    storage.remove_tree(run_url)
    path = str(kube.ROOT / f"examples/kind/{name}.yaml")
    release = name.replace("_", "-")
    kube.kubectl("apply", "--filename", path)
    try:
        status = kube.wait_end(release)
        assert status == "Successful", kube.log(release)
        committed = read_manifest(run_url)
    finally:
        kube.kubectl("delete", "--filename", path, "--wait=true", "--timeout=120s")
        kube.wait(f"the end of all of {release}", lambda: kube.is_gone(release))
    for file in committed.files:
        assert len(storage.read_bytes(file.url)) == file.size
    expected = _on_the_laptop(name, laptop)
    assert _comparable(committed) == pytest.approx(
        _comparable(expected), rel=CLOSE.get(job.pipeline, 1e-6), abs=CLOSE.get(job.pipeline, 1e-9)
    )
    assert committed.metrics.keys() == expected.metrics.keys()


def test_make_submit_follows_a_job_to_its_end() -> None:
    storage.remove_tree(storage.join("s3://demo/runs", _job_of("california").name))
    command = ("make", "--no-print-directory", "-C", str(kube.ROOT), "submit", "JOB=examples/california.yaml")
    try:
        said = kube.run(*command, "NAME=submitted", timeout_s=180)
    finally:
        kube.remove("submitted")
    assert "5/5 write took" in said
    assert "submitted: Successful" in said


@cache
def _job_of(name: str) -> spec.JobSpec:
    documents = yaml.safe_load_all((kube.ROOT / f"examples/kind/{name}.yaml").read_text())
    config = next(document for document in documents if document["kind"] == "ConfigMap")
    return spec.parse(yaml.safe_load(config["data"]["job.yaml"]))


def _on_the_laptop(name: str, client: Client) -> Manifest:
    job = spec.load(kube.ROOT / f"examples/{name}.yaml", (f"run_id=laptop-{name.replace('_', '-')}",))
    storage.remove_tree(storage.join(job.output, job.name))
    return runner.run(job, client=client).manifest


def _comparable(manifest: Manifest) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in manifest.metrics.items()
        if not isinstance(value, str) and not name.endswith(TIMING) and math.isfinite(value)
    }
