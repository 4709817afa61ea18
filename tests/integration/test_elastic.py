"""Ranks that die, hang, leave and join: does the fit go on, and does the result stay the same?

The model counts how often each sample went into its weights (`counted`), so a sample that was lost or seen twice shows;
every fit is compared with one that nothing happened to, to the last bit.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster

from benchmarks.faults import pids_of, ranks
from jobs.errors import WorkersLostError
from jobs.training import driver
from jobs.training.checkpoints import Checkpoints
from jobs.training.driver import Driver, Limits
from jobs.training.membership import Change
from jobs.training.trainer import Trainer, TrainResult
from tests.integration import counted
from tests.integration.counted import N, Numbers, assert_each_was_counted_once, counting_loss
from tests.processes import Processes
from tests.strangers import listeners_of

pytestmark = pytest.mark.slow

TRAINER = replace(
    counted.TRAINER,
    world_size=3,
    hang_timeout_s=3,
    n_threads=1,  # the last digits can depend on it
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        client.wait_for_workers(3, timeout=60)
        yield client


@pytest.fixture
def workers(client: Client) -> list[int]:
    """The workers' process ids: other tests on this machine have ranks too."""
    return pids_of(client)


@pytest.fixture(scope="module")
def undisturbed() -> TrainResult:
    return TRAINER.fit_here()


def fit_disturbed(
    client: Client, share: float, act: Callable[[], None], folder: Path, trainer: Trainer = TRAINER
) -> TrainResult:
    """Fit, and act once this share of the samples has been seen: data is slow until then, so no fit ends before."""
    is_over = folder / "over"

    def on_progress(n_seen: int, n_total: int) -> None:
        if not is_over.exists() and n_seen >= share * n_total:
            act()
            is_over.touch()

    return replace(trainer, data=Numbers(N, 0.1, is_over)).fit(client, on_progress)


def when_committed(*acts: Callable[[], None]) -> Callable[[Change], None]:
    """Return a listener that does the first act as the first generation keeps a step, and so on."""
    remaining = list(acts)

    def on_change(change: Change) -> None:
        if change.kind == "committed" and remaining:
            remaining.pop(0)()

    return on_change


def nothing() -> None: ...


def sizes_of(result: TrainResult) -> list[int]:
    """How many ranks the generations had that kept a step."""
    return [change.world_size for change in result.timeline if change.kind == "committed"]


def send(number: int, which: slice, workers: list[int]) -> Callable[[], None]:
    def act() -> None:
        for pid in ranks(workers)[which]:
            os.kill(pid, number)

    return act


def assert_same(result: TrainResult, expected: TrainResult) -> None:
    assert_each_was_counted_once(result, rtol=1e-5)
    for name, value in expected.state_dict.items():
        torch.testing.assert_close(result.state_dict[name], value, rtol=0, atol=0)
    for ours, theirs in zip(result.history, expected.history, strict=True):
        assert (ours.loss, ours.validation_loss) == (theirs.loss, theirs.validation_loss)
        assert ours.validation_metric == theirs.validation_metric


def happened(result: TrainResult, kind: str) -> int:
    return sum(change.kind == kind for change in result.timeline)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_learns_the_same(client: Client, undisturbed: TrainResult, world_size: int) -> None:
    assert_same(replace(TRAINER, world_size=world_size).fit(client), undisturbed)


@pytest.mark.parametrize(("share", "which"), [(0.0, 1), (0.34, 0), (0.5, 2), (0.7, 0)])
def test_a_killed_rank_is_done_without_by_the_same_processes(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path, share: float, which: int
) -> None:
    # Among them is the one at whose store the others met.
    before: list[int] = []
    after: list[int] = []
    is_over = tmp_path / "over"

    def kill(n_seen: int, n_total: int) -> None:
        if not before and n_seen >= share * n_total:
            before.extend(ranks(workers))
            os.kill(before[which], signal.SIGKILL)

    def look() -> None:
        after.extend(ranks(workers))
        is_over.touch()

    result = replace(TRAINER, data=Numbers(N, 0.1, is_over)).fit(client, kill, when_committed(nothing, look))
    assert_same(result, undisturbed)
    assert set(before) & set(after) == set(before) - {before[which]}
    assert "SIGKILL" in next(change for change in result.timeline if change.kind == "lost").why


def test_the_process_whose_store_the_others_met_at_may_be_killed(
    client: Client, undisturbed: TrainResult, tmp_path: Path
) -> None:
    is_over = tmp_path / "over"
    limits = Limits(3, 1, 3, "auto", 60, 60, 10, 1)
    fit = Driver(
        client, replace(TRAINER, data=Numbers(N, 0.1, is_over))._plan(), limits, lambda done, total: kill(done / total)
    )
    killed: list[str] = []

    def kill(share: float) -> None:
        if not killed and share > 0.4:
            killed.append(fit._membership.current[0])
            ready = next(c for c in fit._membership.timeline if (c.kind, c.member) == ("ready", killed[0]))
            os.kill(int(ready.why.removeprefix("process ")), signal.SIGKILL)
            is_over.touch()

    outcome = fit.run()
    assert [change.member for change in outcome.timeline if change.kind == "lost"] == killed
    for name, value in undisturbed.state_dict.items():
        torch.testing.assert_close(outcome.result.state_dict[name], value, rtol=0, atol=0)


def test_a_rank_that_hangs_is_killed_and_done_without(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    result = fit_disturbed(client, 0.4, send(signal.SIGSTOP, slice(0, 1), workers), tmp_path)
    assert_same(result, undisturbed)
    [lost] = [change for change in result.timeline if change.kind == "lost"]
    assert "hung for 3 s" in lost.why


def test_ranks_listen_on_loopback_alone_where_their_workers_do(client: Client, workers: list[int]) -> None:
    listening: dict[int, set[str]] = {}

    def look() -> None:
        found = {pid: {address for address, _ in listeners_of(pid)} for pid in ranks(workers)}
        listening.update({pid: addresses for pid, addresses in found.items() if addresses})

    TRAINER.fit(client, on_change=when_committed(look))
    assert list(listening.values()) == [{"127.0.0.1"}] * 3  # with the store where they meet, and gloo


def test_a_rank_that_is_told_to_leave_finishes_its_step(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    result = fit_disturbed(client, 0.4, send(signal.SIGTERM, slice(1, 2), workers), tmp_path)
    assert_same(result, undisturbed)
    assert (happened(result, "left"), happened(result, "lost"), happened(result, "broken")) == (1, 0, 0)


def test_two_ranks_killed_at_once_leave_one(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    result = fit_disturbed(client, 0.4, send(signal.SIGKILL, slice(0, 2), workers), tmp_path)
    assert_same(result, undisturbed)
    assert happened(result, "lost") == 2


def test_a_rank_that_was_killed_is_replaced_while_the_others_go_on(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    is_replaced = tmp_path / "replaced"
    trainer = replace(TRAINER, data=Numbers(N, 0.5, is_replaced))
    acts = when_committed(send(signal.SIGKILL, slice(0, 1), workers), nothing, is_replaced.touch)
    result = trainer.fit(client, on_change=acts)
    assert_same(result, undisturbed)
    assert sizes_of(result) == [3, 2, 3]


def test_a_rank_that_is_killed_while_it_joins_does_not_stop_the_others(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    are_killed = tmp_path / "killed"
    killed: list[int] = []

    def kill_the_next_ones() -> None:
        present = set(ranks(workers))
        killed.append(min(present))
        os.kill(min(present), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(killed) < 3 and time.monotonic() < deadline:
            for pid in set(ranks(workers)) - present - set(killed):
                time.sleep(0.02 * len(killed))  # before it is ready, and while the others let it in
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        are_killed.touch()

    with ThreadPoolExecutor(1) as pool:
        result = replace(TRAINER, data=Numbers(N, 0.5, are_killed)).fit(
            client, on_change=when_committed(lambda: pool.submit(kill_the_next_ones))
        )
    assert_same(result, undisturbed)
    assert happened(result, "lost") == len(killed) == 3


def test_a_rank_that_is_killed_while_others_meet_does_not_keep_them_waiting(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_MAX_PAUSE_S", 0.2)
    delays = [0.0, 0.01, 0.02, 0.03, 0.045, 0.06]
    are_killed = tmp_path / "killed"
    killed: list[int] = []

    def kill(number: int) -> None:
        time.sleep(delays[number])
        present = ranks(workers)
        killed.append(present[number % len(present)])
        os.kill(killed[-1], signal.SIGKILL)

    def on_change(change: Change) -> None:
        if change.kind == "committed" and not killed:
            pool.submit(kill, 0)
        elif change.kind == "ready" and len(killed) == len(delays):
            are_killed.touch()
        elif change.kind == "ready" and killed:  # it is let in now
            pool.submit(kill, len(killed))

    with ThreadPoolExecutor(1) as pool:
        result = replace(TRAINER, data=Numbers(N, 0.2, are_killed)).fit(client, on_change=on_change)
    assert_same(result, undisturbed)
    lost = [change for change in result.timeline if change.kind == "lost"]
    assert len(lost) == len(delays)
    for change in lost:
        kept = (c.at for c in result.timeline if c.kind == "committed" and c.generation > change.generation)
        assert next(kept) - change.at < 8  # a step takes a second or two; torch alone waits for a lost peer for 10 s


def test_all_ranks_killed_begin_again_at_the_last_checkpoint(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    trainer = replace(TRAINER, checkpoints=Checkpoints(str(tmp_path), "f" * 64), checkpoint_every_s=0.3)

    def kill_all() -> None:
        deadline = time.monotonic() + 30
        while (latest := trainer.checkpoints.latest()) is None or latest.position <= 12:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        send(signal.SIGKILL, slice(None), workers)()

    result = fit_disturbed(client, 0.5, kill_all, tmp_path, trainer)
    assert_same(result, undisturbed)
    formed = [change.position for change in result.timeline if change.kind == "formed"]
    assert formed[0] == 0
    assert formed[-1] is not None
    assert formed[-1] > 12  # an epoch has 13 steps, and each ends with a checkpoint


def test_without_checkpoints_all_ranks_killed_begin_anew(
    client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    assert_same(fit_disturbed(client, 0.5, send(signal.SIGKILL, slice(None), workers), tmp_path), undisturbed)


def test_a_second_fit_goes_on_in_mid_epoch_where_the_first_was_cut_off(
    client: Client, undisturbed: TrainResult, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    trainer = replace(TRAINER, checkpoints=Checkpoints(str(tmp_path), "f" * 64), checkpoint_every_s=0.2)
    with pytest.raises(KeyboardInterrupt):
        fit_disturbed(client, 0.5, interrupt, tmp_path, trainer)
    latest = trainer.checkpoints.latest() if trainer.checkpoints is not None else None
    assert latest is not None
    result = replace(trainer, world_size=2).fit(client)
    assert_same(result, undisturbed)
    formed = next(change for change in result.timeline if change.kind == "formed")
    assert formed.position is not None
    assert formed.position >= latest.position > 0


def test_a_step_that_always_loses_its_rank_ends_the_fit_and_says_so(client: Client) -> None:
    trainer = replace(TRAINER, loss_fn=deadly_loss, world_size=1)
    with pytest.raises(WorkersLostError, match=r"ranks were lost 5 times at step 1, the last: .*SIGKILL"):
        trainer.fit(client)


def deadly_loss(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return counting_loss(outputs, targets)


def test_a_rank_keeps_the_memory_that_a_step_frees_for_the_next(client: Client) -> None:
    replace(TRAINER, loss_fn=loss_in_memory_that_was_there, world_size=1, epochs=1).fit(client)


def loss_in_memory_that_was_there(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    def n_faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    for n in range(30):  # the first few find gaps that are too small for them
        if n == 20:
            before = n_faults()
        torch.ones(1 << 21)  # 8 MiB
    assert n_faults() - before < 2048  # pages of one of the last ten
    return counting_loss(outputs, targets)


def test_fewer_ranks_than_the_minimum_end_the_fit(client: Client, workers: list[int], tmp_path: Path) -> None:
    trainer = replace(TRAINER, min_world_size=3, start_timeout_s=8)

    def forbid_more() -> None:
        send(signal.SIGTERM, slice(0, 1), workers)()  # told to leave: no other is started there

    with pytest.raises(WorkersLostError, match="2 ranks ready in 8 s, 3 are needed"):
        fit_disturbed(client, 0.3, forbid_more, tmp_path, trainer)


def test_two_fits_at_once_never_hold_half_of_the_workers_each(cluster: LocalCluster, undisturbed: TrainResult) -> None:
    def fit(_: int) -> TrainResult:
        with Client(cluster) as client:
            return replace(TRAINER, data=Numbers(N, 0.005), min_world_size=3).fit(client)

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(fit, range(2)):
            assert_same(result, undisturbed)
            assert happened(result, "lost") == 0


def test_a_worker_that_comes_joins_and_one_that_retires_leaves(undisturbed: TrainResult, tmp_path: Path) -> None:
    is_over = tmp_path / "over"
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = next(iter(cluster.scheduler.workers))
        acts = when_committed(
            lambda: cluster.scale(2), lambda: pool.submit(client.retire_workers, [first]), is_over.touch
        )
        trainer = replace(TRAINER, data=Numbers(N, 0.3, is_over), world_size=1, max_world_size=2)
        result = trainer.fit(client, on_change=acts)
    assert_same(result, undisturbed)
    assert sizes_of(result) == [1, 2, 1]
    assert happened(result, "left") + happened(result, "lost") == 1  # as its step ends before or after its worker


def test_a_driver_that_is_killed_leaves_no_rank_and_its_fit_goes_on_elsewhere(
    cluster: LocalCluster, client: Client, workers: list[int], undisturbed: TrainResult, tmp_path: Path
) -> None:
    trainer = replace(
        TRAINER, data=Numbers(N, 0.1), checkpoints=Checkpoints(str(tmp_path), "f" * 64), checkpoint_every_s=0.2
    )
    process = multiprocessing.get_context("spawn").Process(target=fit_at, args=(cluster.scheduler_address, trainer))
    process.start()
    deadline = time.monotonic() + 120
    while trainer.checkpoints.latest() is None or trainer.checkpoints.latest().position < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.join(10)
    while ranks(workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    result = replace(trainer, data=Numbers(N)).fit(client)
    assert_same(result, undisturbed)
    formed = next(change for change in result.timeline if change.kind == "formed")
    assert formed.position is not None
    assert formed.position >= 4


def fit_at(address: str, trainer: Trainer) -> None:
    with Client(address) as client:
        trainer.fit(client)


@pytest.mark.parametrize("look_every_s", [0.5, 0.0])  # at 0, the driver asks for workers in the very next moment
def test_a_scheduler_that_is_started_anew_ends_the_fit(
    look_every_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_LOOK_EVERY_S", look_every_s)
    processes = Processes(tmp_path)

    def restart() -> None:
        processes.kill_scheduler()
        processes.start_scheduler()

    try:
        processes.start_scheduler()
        processes.start_worker()
        with Client(processes.address, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            start = time.monotonic()
            with pytest.raises(WorkersLostError, match="connection to the scheduler lost"):
                replace(TRAINER, data=Numbers(N, 1.0), world_size=1).fit(client, on_change=when_committed(restart))
            assert time.monotonic() - start < 60  # a fit that waits for ranks does so for 120 s
            # Closed while it connects, a client leaves a socket to the garbage collector, which tells a later test.
            while client.status != "running":
                assert time.monotonic() - start < 90
                time.sleep(0.01)
    finally:
        processes.stop()


def test_no_process_is_left(client: Client, workers: list[int]) -> None:
    deadline = time.monotonic() + 10
    while ranks(workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
