"""What the stock operator cannot do (docs/kubernetes.md): does a user still never find a half-written result?"""

from __future__ import annotations

import time

import kube
import pytest
from jobs_of import clusters_of_proteins

from jobs import storage
from jobs.artifacts import read_manifest
from jobs.errors import StorageMissingError

ENDLESS = 1000


def test_runner_deleted_leaves_a_daskjob_that_says_running_and_nothing_that_looks_like_a_result() -> None:
    run_id = "runner-deleted"
    storage.remove_tree(f"s3://demo/e2e/{run_id}")
    with kube.job("orphan", clusters_of_proteins(run_id, ENDLESS)):
        kube.wait_stage("orphan", "3/5 fit")
        kube.kubectl("delete", "pod", "orphan-runner", "--wait=true")
        time.sleep(10)
        assert kube.status("orphan") == "Running"  # the operator's limit: nobody tells the DaskJob
        with pytest.raises(StorageMissingError):
            storage.list_files(f"s3://demo/e2e/{run_id}")
    # The same run id, submitted again.
    with kube.job("orphan", clusters_of_proteins(run_id, 1)):
        assert kube.wait_end("orphan") == "Successful", kube.log("orphan")
    assert read_manifest(f"s3://demo/e2e/{run_id}").run_id == run_id


def test_cluster_deleted_under_a_job_ends_the_runner_with_75_and_the_daskjob_says_running() -> None:
    run_id = "cluster-deleted"
    storage.remove_tree(f"s3://demo/e2e/{run_id}")
    with kube.job("bereft", clusters_of_proteins(run_id, ENDLESS), "--set", "retries=0"):
        kube.wait_stage("bereft", "3/5 fit")
        kube.kubectl("delete", "daskcluster", "bereft", "--wait=true")
        pod = kube.wait(
            "the runner's end",
            lambda: (found := kube.get("pod", "bereft-runner"))["status"]["phase"] == "Failed" and found,
            timeout_s=150,
        )
        assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 75
        time.sleep(5)
        assert kube.status("bereft") == "Running"  # the operator's limit: it looks for the cluster first
        with pytest.raises(StorageMissingError):
            storage.list_files(f"s3://demo/e2e/{run_id}")
