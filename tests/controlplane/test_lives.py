"""Lives of MLJobs on a real API server, with the operator and the Job controller that clusters have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.controlplane.jobs import NOBODY, mljob
from tests.controlplane.kubelet import COMMITTED, Kubelet, Life
from tests.controlplane.plane import TEAM, Plane


@pytest.fixture(autouse=True)
def _controller(cluster: Plane) -> Iterator[None]:
    with cluster.controller(NOBODY):
        yield


def test_a_job_goes_to_its_commit(cluster: Plane, pods: Kubelet) -> None:
    pods.runners[TEAM, "bio"] = [Life(1.0, said=COMMITTED)]
    cluster.apply(mljob("bio"))
    status = cluster.wait_for_phase("bio", "Succeeded")
    assert status["metrics"] == COMMITTED["metrics"]
    assert [attempt["number"] for attempt in status["attempts"]] == [1]
