"""What runs in pods, beside real schedulers and workers: retirement before a stop, and autoscaling of one group."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Event, LocalCluster, Scheduler, Worker, wait
from distributed.core import rpc

from jobs.workers import workers_of
from tests.processes import Processes

pytestmark = pytest.mark.timeout(200)

LEAVING, STAYING = "c-default-worker-0123456789", "c-default-worker-9876543210"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    processes.start_scheduler()
    yield processes
    processes.stop()


@pytest.fixture
def client(processes: Processes) -> Iterator[Client]:
    with Client(processes.address, timeout=60) as client:
        yield client


def retire(address: str, name: str = LEAVING, timeout_s: float = 30.0) -> tuple[int, str, float]:
    """Run the hook as a pod does; return exit code, what it said and how long it took."""
    environment = os.environ | {"DASK_SCHEDULER_ADDRESS": address, "DASK_WORKER_NAME": name}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-P", "-m", "jobs.pods.retire", "--timeout", str(timeout_s)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
    return result.returncode, result.stdout.strip(), time.monotonic() - start


def noted(key: int, folder: str, seconds: float = 0.0) -> bytes:
    """Take a while, and leave a file for each time this is run to its end or begun."""
    Path(folder, f"{key}-{time.time_ns()}-begun").touch()
    time.sleep(seconds)
    return bytes(1000) + str(key).encode()


def times_begun(folder: Path) -> Counter[int]:
    return Counter(int(path.name.split("-")[0]) for path in folder.iterdir())


def names(client: Client) -> list[str]:
    return sorted(worker["name"] for worker in workers_of(client).values())


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_retired_worker_loses_nothing_and_nothing_is_computed_twice(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    leaving = processes.start_worker("--name", LEAVING)
    processes.start_worker("--name", STAYING)
    wait_for(lambda: names(client) == [LEAVING, STAYING])
    done = client.map(noted, range(40), folder=str(folder), pure=False)
    wait(done, timeout=60)
    where = {worker["name"]: address for address, worker in workers_of(client).items()}
    assert client.has_what()[where[LEAVING]]
    # The first of these is running when the worker is retired, the others wait behind it.
    options = {"workers": [where[LEAVING]], "allow_other_workers": True, "pure": False}
    running = client.map(noted, range(40, 44), folder=str(folder), seconds=4.0, **options)
    wait_for(lambda: times_begun(folder)[40] == 1)

    code, said, seconds = retire(processes.address)
    assert (code, said) == (0, f"{LEAVING}: retired")
    assert seconds < 15
    assert names(client) == [STAYING]
    leaving.send_signal(signal.SIGTERM)
    fresh = processes.start_worker("--name", LEAVING)
    assert leaving.wait(timeout=20) == 0

    results = client.gather(done + running)
    assert [int(result[1000:]) for result in results] == list(range(44))
    assert times_begun(folder) == dict.fromkeys(range(44), 1)
    wait_for(lambda: names(client) == [LEAVING, STAYING])
    assert fresh.poll() is None
    assert "name taken" not in (tmp_path / "cluster.log").read_text()


@pytest.fixture
def pair() -> Iterator[Client]:
    """A client of two workers, named 0 and 1, in this process."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def address_of(client: Client) -> str:
    return str(client.cluster.scheduler.address)


def test_past_the_deadline_a_task_begins_elsewhere_and_is_not_taken_for_the_culprit(pair: Client) -> None:
    cluster = pair.cluster
    address = cluster.workers[0].address
    release = Event("release", client=pair)
    slow = pair.submit(lambda: Event("release").wait("60s"), workers=[address], allow_other_workers=True, pure=False)
    wait_for(lambda: cluster.workers[0].state.executing)
    code, said, _ = retire(address_of(pair), "0", timeout_s=8.0)
    assert (code, said) == (1, "0: not retired in time, 1 tasks unfinished; they begin again elsewhere")
    assert {worker.name for worker in cluster.scheduler.workers.values()} == {1}
    assert cluster.scheduler.tasks[slow.key].suspicious == 0
    release.set()
    assert slow.result(timeout=30)


def test_the_only_worker_is_retired_when_another_has_come(pair: Client) -> None:
    pair.retire_workers(names=["1"])
    number = pair.submit(lambda: 42, pure=False)
    assert number.result(timeout=30) == 42
    code, said, _ = retire(address_of(pair), "0", timeout_s=8.0)
    assert (code, said) == (1, "0: not retired in time, no other worker can take its results")
    assert pair.submit(lambda: 43, pure=False).result(timeout=30) == 43
    late = threading.Timer(2.0, pair.cluster.scale, [3])
    late.start()
    code, said, _ = retire(address_of(pair), "0")
    assert (code, said) == (0, "0: retired")
    late.join()
    assert number.result(timeout=30) == 42


def test_where_there_is_nothing_to_save_the_hook_says_so_at_once(pair: Client) -> None:
    code, said, seconds = retire(address_of(pair), "another")
    assert (code, said) == (0, "another: nothing to save, the scheduler does not know the worker")
    code, said, seconds = retire("tcp://127.0.0.1:1")
    assert (code, said) == (0, f"{LEAVING}: nothing to save, no scheduler at tcp://127.0.0.1:1 (Connection refused)")
    assert seconds < 2


def test_a_scheduler_that_dies_meanwhile_leaves_nothing_to_save(
    processes: Processes, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    processes.start_worker("--name", LEAVING)
    processes.start_worker("--name", STAYING)
    wait_for(lambda: names(client) == [LEAVING, STAYING])
    where = {worker["name"]: address for address, worker in workers_of(client).items()}
    held = client.submit(noted, 0, folder=str(folder), seconds=10.0, workers=[where[LEAVING]], pure=False)
    wait_for(lambda: times_begun(folder)[0] == 1)
    killer = threading.Timer(4.0, processes.kill_scheduler)
    killer.start()
    code, said, seconds = retire(processes.address)
    killer.join()
    del held
    assert (code, said) == (0, f"{LEAVING}: nothing to save, the scheduler went away")
    assert seconds < 20


# --- groups ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def cluster_of(*names: str, group: str | None = "c-default") -> AsyncIterator[Scheduler]:
    """A scheduler with the preload, and workers of one thread with these names."""
    options = {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0", "preload": "jobs.pods.groups"}
    with dask.config.set({"daskyard.autoscaled-group": group}):
        async with Scheduler(**options) as scheduler, AsyncExitStack() as stack:
            for name in names:
                resources = {"GPU": 1} if "gpu" in name else {}
                worker = Worker(scheduler.address, name=name, nthreads=1, resources=resources)
                await stack.enter_async_context(worker)
            yield scheduler


async def asked(scheduler: Scheduler, n: int) -> list[str]:
    """Ask as the operator does."""
    async with rpc(scheduler.address) as comm:
        return list(await comm.workers_to_close(n=n, attribute="name"))


async def target(scheduler: Scheduler) -> int:
    async with rpc(scheduler.address) as comm:
        return int(await comm.adaptive_target())


DEFAULT = [f"c-default-worker-{number}" for number in range(3)]
GPU = [f"c-gpu-worker-{number}" for number in range(2)]


def run(check: Coroutine[Any, Any, None]) -> None:
    """Run in a thread of its own.

    In this one, asyncio would drop the event loop that distributed has made here if a message that was cut off was
    collected as garbage meanwhile (ConnectionPool.reuse asks for the thread's loop), and nobody would have closed it.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, check).result()


def test_only_workers_of_the_group_are_closed_however_many_are_asked_for() -> None:
    async def check() -> None:
        # The group's name begins another's.
        async with cluster_of(*DEFAULT, *GPU, "c-default-worker-gpu-worker-0") as scheduler:
            for n in range(7):
                found = await asked(scheduler, n)
                assert len(found) == min(n, 3)
                assert set(found) <= set(DEFAULT)
            async with rpc(scheduler.address) as comm:
                await comm.retire_workers(names=await comm.workers_to_close(n=5, attribute="name"))
            assert {ws.name for ws in scheduler.workers.values()} == {*GPU, "c-default-worker-gpu-worker-0"}
            assert await asked(scheduler, 2) == []

    run(check())


def test_idle_workers_are_closed_before_busy_ones() -> None:
    async def check() -> None:
        async with (
            cluster_of(*DEFAULT, *GPU) as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            busy = {DEFAULT[0], DEFAULT[2], GPU[0]}
            release = [Event(f"event-{name}", client=client) for name in sorted(busy)]
            tasks = [
                client.submit(lambda name: Event(f"event-{name}").wait(), name, workers=[name], pure=False)
                for name in sorted(busy)
            ]
            while sum(len(ws.processing) for ws in scheduler.workers.values()) < 3:
                await asyncio.sleep(0.01)
            assert await asked(scheduler, 1) == [DEFAULT[1]]
            assert (await asked(scheduler, 2))[0] == DEFAULT[1]
            for event in release:
                await event.set()
            await client.gather(tasks)

    run(check())


def test_the_target_is_that_of_the_group() -> None:
    async def check() -> None:
        async with (
            cluster_of(*DEFAULT, *GPU) as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            assert await target(scheduler) == 0  # all are idle, and two of the five are not the group's
            stop = Event("stop", client=client)
            tasks = client.map(lambda _: Event("stop").wait(), range(60), pure=False)
            while sum(len(ws.processing) for ws in scheduler.workers.values()) < 5:
                await asyncio.sleep(0.01)
            wanted = scheduler.adaptive_target(target_duration="1 s")
            async with rpc(scheduler.address) as comm:
                assert await comm.adaptive_target(target_duration="1 s") == wanted - 2
            assert wanted > 5
            await stop.set()
            await client.gather(tasks)

        async with cluster_of(*GPU) as scheduler:
            assert await target(scheduler) == 0

    run(check())


def test_without_the_setting_the_scheduler_answers_as_dask_does() -> None:
    async def check() -> None:
        async with cluster_of(*DEFAULT, *GPU, group=None) as scheduler:
            assert len(await asked(scheduler, 5)) == 5
            assert scheduler.handlers["adaptive_target"] == scheduler.adaptive_target

    run(check())


def test_dask_scheduler_takes_the_group_from_its_environment(processes: Processes) -> None:
    processes.kill_scheduler()
    processes.start_scheduler("--preload", "jobs.pods.groups", DASK_DASKYARD__AUTOSCALED_GROUP="c-default")
    with Client(processes.address, timeout=60) as client:
        processes.start_worker("--name", GPU[0])
        wait_for(lambda: names(client) == [GPU[0]])
        assert client.sync(client.scheduler.workers_to_close, n=1, attribute="name") == ()
        assert client.sync(client.scheduler.adaptive_target) == 0
