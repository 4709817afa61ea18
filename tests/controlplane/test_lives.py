"""Lives of MLJobs on a real API server, with the operator and the Job controller that clusters have."""

from __future__ import annotations

from tests.controlplane.jobs import NOBODY, mljob
from tests.controlplane.kubelet import COMMITTED, Kubelet, Life
from tests.controlplane.plane import TEAM, Plane


def test_a_job_goes_to_its_commit(cluster: Plane, pods: Kubelet) -> None:
    pods.runners[TEAM, "bio"] = [Life(1.0, said=COMMITTED)]
    with cluster.controller(NOBODY):
        cluster.apply(mljob("bio"))
        status = cluster.wait_for_phase("bio", "Succeeded")
    assert status["metrics"] == COMMITTED["metrics"]
    assert [attempt["number"] for attempt in status["attempts"]] == [1]


def test_what_a_process_made_and_could_not_note_is_taken_over(cluster: Plane, pods: Kubelet) -> None:
    """It ended before the status was written; the next one finds the objects alike to those that it would make."""
    with cluster.controller(NOBODY):
        cluster.apply(mljob("orphan"))
        noted = cluster.wait_for_phase("orphan", "Running")["attempts"]
        objects = noted[0]["objects"]
        assert {key.partition("/")[0] for key in objects} >= {"ConfigMap", "DaskCluster", "DaskWorkerGroup", "Job"}
    forgotten = [{**noted[0], "objects": {}}]
    cluster.api.patch("MLJob", TEAM, "orphan", {"status": {"attempts": forgotten}}, part="status")
    with cluster.controller(NOBODY):
        pods.runners[TEAM, "orphan"] = [Life(0.0, said=COMMITTED)]
        status = cluster.wait_for_phase("orphan", "Succeeded")
    [attempt] = status["attempts"]
    assert attempt["objects"].items() >= objects.items()
    assert not any("orphan" in message for message in cluster.events("Stranger"))
