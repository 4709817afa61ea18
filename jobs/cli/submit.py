"""Submits an MLJob and follows it to its end: what `daskyard submit` and `daskyard follow` do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from rich.console import Console

from jobs.cli.progress import watching
from jobs.cli.submit_api import Cluster, NameTakenError, NoAnswerError, NoSuchJobError
from jobs.cli.submit_manifest import Object
from jobs.cli.submit_status import StatusShown, failure, is_over
from jobs.errors import DaskyardError, SpecError, StoppedError
from jobs.listener import Listener

POLL_S = 1.0
PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
# A line may reach the log so long after it was written.
_LOG_SLACK_S = 10

T = TypeVar("T")


class LeftRunning(KeyboardInterrupt):
    """Whoever followed a job was interrupted; the message says how to come back to it."""


def submitted(cluster: Cluster, job: Object) -> tuple[Object, bool]:
    """Make a job, and return it and whether it was there before with the same spec.

    Raises
    ------
    SpecError
        When there is one of that name with another spec, or the API server refuses it.
    NoAnswerError
        When there is no answer: to submit it again makes it once.
    """
    name = job["metadata"]["name"]
    try:
        return cluster.create(job), False
    except NameTakenError:
        there = cluster.get(name)
    except NoAnswerError as error:
        raise NoAnswerError(f"{error}; submit it again, it is made once") from error
    if _lasting(there["spec"]) != _lasting(cluster.with_defaults(job["spec"])):
        raise SpecError(
            f"{cluster.place(name)}: it exists with another spec; choose another --name, or: kubectl delete mljob "
            f"{cluster.options(name)}"
        )
    return there, True


def _lasting(spec: Object) -> Object:
    """Return a spec without the switch that stops and starts a job, which others may have turned."""
    return {key: value for key, value in spec.items() if key != "suspend"}


def followed(cluster: Cluster, job: Object, *, has_logs: bool = False, told: str = "following") -> Object:
    """Show what becomes of a job on standard error, and return it as it is at its end.

    Parameters
    ----------
    cluster : Cluster
        Where it is.
    job : dict
        As it was when it was made or found.
    has_logs : bool
        Whether to show what its runner writes as well.
    told : str
        What is said of it first.

    Raises
    ------
    NoAnswerError
        When the API server has not answered for a minute.
    LeftRunning, StoppedError
        When whoever follows is told to stop.
    """
    # Dask comes with it: only who follows a job waits for that.
    from jobs.runner import STAGES

    name, spec = job["metadata"]["name"], job["spec"]
    stages = ("tune", *STAGES) if spec.get("tune") else STAGES
    console = Console(stderr=True)
    with _left_running(cluster, name), watching(console) as listener:
        listener.message(f"{cluster.place(name)}: {told}")
        log = RunnerLog(cluster, job, listener) if has_logs else None
        shown = StatusShown(listener, stages, has_bars=console.is_terminal)
        return Following(cluster, job, listener, shown, log).to_the_end()


def error_of(cluster: Cluster, job: Object) -> DaskyardError | None:
    """Return the error of a job that is over; None where it succeeded."""
    if job["status"]["phase"] == "Succeeded":
        return None
    name = job["metadata"]["name"]
    error = failure(cluster.place(name), job["status"])
    error.args = (f"{error}; before you submit it again: kubectl delete mljob {cluster.options(name)}",)
    return error


def comeback(cluster: Cluster, name: str) -> str:
    """Return what to type to follow a job."""
    return f"daskyard follow {cluster.options(name)}"


@contextmanager
def _left_running(cluster: Cluster, name: str) -> Iterator[None]:
    """Say how to come back to a job that goes on without the one who followed it."""
    text = f"{cluster.place(name)} goes on; come back to it: {comeback(cluster, name)}"
    try:
        yield
    except KeyboardInterrupt:
        raise LeftRunning(text) from None
    except StoppedError:
        raise StoppedError(f"told to stop by SIGTERM; {text}") from None


class Following:
    """Reads a job's status again and again until it is over.

    Parameters
    ----------
    cluster : Cluster
        Where it is.
    job : dict
        As it was found.
    listener : Listener
        Is told when the API server falls silent.
    shown : StatusShown
        Is told each status.
    log : RunnerLog, optional
        Is asked for new lines.
    patience_s : float
        How long the API server may be silent.
    """

    def __init__(
        self,
        cluster: Cluster,
        job: Object,
        listener: Listener,
        shown: StatusShown,
        log: RunnerLog | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._cluster = cluster
        self._name = job["metadata"]["name"]
        self._uid = job["metadata"]["uid"]
        self._listener = listener
        self._shown = shown
        self._log = log
        self._patience_s = patience_s

    def to_the_end(self) -> Object:
        """Return the job once it has succeeded or failed.

        Raises
        ------
        DaskyardError
            When it was deleted meanwhile.
        NoAnswerError
            When the API server is silent for too long.
        """
        while True:
            job = self._patiently(self._read)
            status = job.setdefault("status", {})
            self._shown.update(status)
            if self._log is not None:
                self._patiently(partial(self._log.tell, status.get("attempt")))
            if is_over(status):
                return job
            time.sleep(POLL_S)

    def _read(self) -> Object:
        try:
            job = self._cluster.get(self._name)
        except NoSuchJobError:
            job = None
        if job is None or job["metadata"]["uid"] != self._uid:
            place = self._cluster.place(self._name)
            raise DaskyardError(f"{place}: deleted while it was followed; look for its run, or submit it again")
        return job

    def _patiently(self, call: Callable[[], T]) -> T:
        pause, deadline = _FIRST_PAUSE_S, None
        while True:
            try:
                answer = call()
            except NoAnswerError as error:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self._patience_s
                    self._listener.message(f"{error}; the job goes on, asking again")
                if now >= deadline:
                    again = comeback(self._cluster, self._name)
                    raise NoAnswerError(f"{error}; the job goes on, come back to it: {again}") from error
                time.sleep(min(pause, max(deadline - now, 0.0)))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                if deadline is not None:
                    self._listener.message("the API server answers again")
                return answer


class RunnerLog:
    """What the runner's pods have written, read in pieces: a connection that breaks loses and repeats nothing.

    Parameters
    ----------
    cluster : Cluster
        Where they are.
    job : dict
        Whose they are.
    listener : Listener
        Gets each line.
    """

    def __init__(self, cluster: Cluster, job: Object, listener: Listener) -> None:
        self._cluster = cluster
        self._uid = job["metadata"]["uid"]
        self._listener = listener
        self._last: dict[str, str] = {}
        self._read_at: dict[str, float] = {}
        self._is_denied = False

    def tell(self, attempt: int | None) -> None:
        """Tell the lines that have come since the last call, of this attempt's runner."""
        if attempt is None or self._is_denied:
            return
        labels = {
            "daskyard.dev/job-uid": self._uid,
            "daskyard.dev/attempt": attempt,
            "app.kubernetes.io/component": "runner",
        }
        try:
            for pod in self._cluster.pods(",".join(f"{name}={value}" for name, value in labels.items())):
                if pod["status"].get("phase") != "Pending":
                    self._tell_pod(pod["metadata"]["name"], pod["spec"]["containers"][0]["name"])
        except NoSuchJobError:
            pass  # the pod has just gone
        except SpecError as error:
            self._is_denied = True
            self._listener.message(f"{error}; going on without the runner's log")

    def _tell_pod(self, pod: str, container: str) -> None:
        before, now = self._read_at.get(pod), time.monotonic()
        since = None if before is None else int(now - before) + _LOG_SLACK_S
        for line in self._cluster.log(pod, container, since).splitlines():
            stamp, _, text = line.partition(" ")
            # Stamps have nine digits of a second each: they sort as text.
            if stamp > self._last.get(pod, ""):
                self._last[pod] = stamp
                self._listener.message(text)
        self._read_at[pod] = now
