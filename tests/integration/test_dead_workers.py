"""Workers that hang, and those that die: who is to blame, what is said, and who tries again."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, SpecCluster, wait
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker, NoWorkerError

from jobs import cluster as jobs_cluster
from jobs import ends, local_worker
from jobs.cluster import connected
from jobs.deaths import explain
from jobs.ends import CRASH, MEMORY, TOLD, UNKNOWN, n_killed_for_memory, why
from jobs.errors import DaskyardError, OutOfMemoryError, PoisonTaskError, WorkersLostError
from jobs.job import Job, workers_lost
from jobs.pods.worker_ttl import silence_s
from jobs.readers.tables import open_table
from tests.conftest import JobFactory
from tests.processes import Processes

pytestmark = pytest.mark.timeout(150)


# --- workers that hang ------------------------------------------------------------------------------------------------


def nap(seconds: float, folder: str) -> int:
    Path(folder, str(os.getpid())).touch()
    time.sleep(seconds)
    return os.getpid()


def test_a_worker_that_was_stopped_is_given_up_and_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(jobs_cluster._LOCAL, "distributed.scheduler.worker-ttl", "2s")
    with connected(1) as client:
        future = client.submit(nap, 1.0, str(tmp_path), pure=False)
        while not (begun := list(tmp_path.iterdir())):
            time.sleep(0.02)
        stopped = int(begun[0].name)
        os.kill(stopped, signal.SIGSTOP)
        assert future.result(timeout=60) != stopped
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, 0)


def test_the_others_tell_nothing_of_a_worker_that_was_stopped(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(jobs_cluster._LOCAL, "distributed.scheduler.worker-ttl", "2s")
    with connected(2) as client:
        (stopped, pid), (other, _) = client.run(os.getpid).items()
        place = {"allow_other_workers": True, "pure": False}
        made = client.map(np.ones, range(1000, 1008), workers=[stopped], **place)
        wait(made)
        os.kill(pid, signal.SIGSTOP)
        sums = client.map(np.sum, made, workers=[other], **place)
        assert client.gather(sums) == [float(n) for n in range(1000, 1008)]
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "CommClosedError" not in said


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (CommClosedError("in <TLS>: Stream is closed"), False),
        (ConnectionResetError(104, "reset"), False),
        (TimeoutError(), False),
        (OSError("Timed out trying to connect"), False),
        (OSError(errno.EMFILE, "too many open files"), True),
        (OSError(errno.ENOSPC, "no space"), True),
        (KeyError("a defect"), True),
    ],
)
def test_a_worker_tells_of_what_it_lacks_but_not_of_lost_connections(error: Exception, is_told: bool) -> None:
    exc_info = (type(error), error, None)
    record = logging.LogRecord("distributed.worker", logging.ERROR, "worker.py", 1, "stream died", (), exc_info)
    assert local_worker._is_not_told_elsewhere(record) is is_told


def test_workers_are_not_given_up_because_the_scheduler_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jobs_cluster._LOCAL, "distributed.scheduler.worker-ttl", "2s")
    with connected(2) as client:
        before = client.run(os.getpid)
        client.loop.add_callback(time.sleep, 8)  # as a machine that sleeps, with everything on it
        time.sleep(9)
        assert client.run(os.getpid) == before


def test_the_local_cluster_gives_up_a_silent_worker_within_a_minute() -> None:
    with connected(1) as client:
        assert isinstance(client.cluster, SpecCluster)
        scheduler: Any = client.cluster.scheduler
        ttl_s, every_s = scheduler.worker_ttl, scheduler.periodic_callbacks["worker-ttl"].callback_time / 1000
        assert ttl_s + every_s <= 55  # the rest is for the nanny, which asks the process before it kills it
        assert scheduler.periodic_callbacks["worker-ttl"].is_running()


def test_many_workers_may_be_silent_for_longer() -> None:
    assert silence_s(45, 2) == silence_s(45, 100) == 45
    assert silence_s(45, 1_000) == 300
    assert silence_s(600, 1_000) == 600


def test_no_worker_left_is_out_of_memory_where_nannies_have_ended_some(job_factory: JobFactory, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with connected(1) as client:
        job = job_factory("kmeans", {"n_clusters": 2}, {"url": str(tmp_path / "a.csv")}, client=client)
        assert isinstance(workers_lost(NoWorkerError("task", 1.0), job.client), WorkersLostError)
        client.log_event("worker-restart-memory", {"worker": "tls://127.0.0.1:1"})
        error = workers_lost(NoWorkerError("task", 1.0), job.client)
    assert type(error) is OutOfMemoryError
    assert "--memory" in str(error)


# --- workers that die -------------------------------------------------------------------------------------------------


def segfault(*_: Any) -> None:
    ctypes.string_at(0)


def leave(*_: Any) -> None:
    os._exit(3)


def take_memory(*_: Any) -> int:
    taken = []
    while True:
        taken.append(np.ones(4 << 20))
        time.sleep(0.02)


def be_told_to_end(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def be_lost(*_: Any) -> None:
    """End as a pod does that is lost: with the nanny, so that nobody is left who could tell why."""
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """As many workers as have to die: one that is sent SIGTERM may take its nanny along, and is not replaced then."""
    monkeypatch.setitem(jobs_cluster._LOCAL, "distributed.scheduler.no-workers-timeout", "5s")
    with connected(3, "400MiB") as client:
        yield client


@pytest.fixture
def job(small: Client, job_factory: JobFactory, tmp_path: Path) -> Job:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("x,y\n1,2\n")
    return job_factory("kmeans", {"n_clusters": 2}, {"url": str(tmp_path / "*.csv")}, client=small)


DEATHS: dict[str, tuple[Callable[..., Any], type[DaskyardError], str]] = {
    "crashes": (segfault, PoisonTaskError, "it is not tried again"),
    "leaves": (leave, PoisonTaskError, "it is not tried again"),
    "takes too much": (take_memory, OutOfMemoryError, "for the memory they took; .*--memory"),
    "is told to end": (be_told_to_end, WorkersLostError, "run (the job|it) again"),
}


@pytest.mark.parametrize("how", DEATHS)
def test_the_error_of_a_task_whose_workers_died_says_who_is_to_blame(job: Job, how: str, tmp_path: Path) -> None:
    task, kind, remedy = DEATHS[how]
    parts = open_table(str(tmp_path / "*.csv"), "csv", 1 << 20).parts
    read = [job.client.submit(_read, part, pure=False) for part in parts]
    said = rf"workers: 3 died while they ran .* on file://{tmp_path}/a.csv.*{remedy}"
    if task is be_told_to_end:  # such a worker may go in good order, which is no death
        said += f"|workers: none left .*{remedy}"
    with pytest.raises(DaskyardError, match=said) as raised:
        job.wait([job.client.submit(task, read[0], pure=False)])
    assert type(raised.value) is kind


def _read(part: Any) -> int:
    return len(part.columns)


@pytest.mark.parametrize(("task", "kind"), [(segfault, PoisonTaskError), (be_lost, WorkersLostError)])
def test_workers_of_a_cluster_elsewhere_tell_why_they_ended_unless_their_nannies_go_with_them(
    task: Callable[..., Any], kind: type[DaskyardError], tmp_path: Path
) -> None:
    processes = Processes(tmp_path)
    try:
        processes.start_scheduler(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")
        for _ in range(3):
            processes.start_worker("--preload-nanny", "jobs.ends")
        with Client(processes.address, timeout=60) as client:
            client.wait_for_workers(3, timeout=60)
            with pytest.raises(KilledWorker) as raised:
                client.submit(task, pure=False).result(timeout=60)
            assert type(explain(client, raised.value)) is kind
    finally:
        processes.kill()


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(0, TOLD), (-15, TOLD), (-2, TOLD), (-11, CRASH), (-6, CRASH), (3, CRASH), (1, CRASH)],
)
def test_an_exit_code_says_why_a_worker_ended(exit_code: int, reason: str) -> None:
    assert why(exit_code, is_for_memory=False) == reason
    assert why(exit_code, is_for_memory=True) == MEMORY


def test_a_kill_is_for_memory_where_the_kernel_has_counted_one_that_nobody_has_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter([7, 7, 8, 8, None])
    monkeypatch.setattr(ends, "n_killed_for_memory", lambda: next(counts))
    ends._count_from_now()
    assert [why(-9, is_for_memory=False) for _ in range(4)] == [CRASH, MEMORY, CRASH, UNKNOWN]


def test_the_kernel_counts_what_it_kills_for_memory() -> None:
    n = n_killed_for_memory()
    if n is None:
        pytest.skip("needs a kernel that counts: cgroup v2, or v1 since Linux 4.13")
    assert n >= 0
