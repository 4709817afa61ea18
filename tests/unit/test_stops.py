"""A stop may strike at any line of a commit: the run is there whole, or not at all, and what is said of it holds."""

from __future__ import annotations

import contextvars
import hashlib
import logging
import sys
import uuid
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import jobs
from jobs import runner, storage
from jobs.artifacts import Attempt, Manifest, read_manifest
from jobs.environment import restored
from jobs.errors import StoppedError, StorageMissingError
from jobs.listener import Listener
from jobs.spec import JobSpec, parse
from jobs.storage.tries import STALL_VARIABLE
from tests.unit.test_artifacts import manifest_of

_OURS = str(Path(jobs.__file__).parent)


class Striker:
    """Raises a stop at the n-th line of ours that runs after a commit has begun; counts the lines."""

    def __init__(self, at: int, stop: type[BaseException]) -> None:
        self.at, self.stop, self.n_lines = at, stop, 0
        self.is_on = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            return None
        self.is_on = self.is_on or (code.co_name == "commit" and code.co_filename.endswith("artifacts.py"))
        if self.is_on and event == "line":
            self.n_lines += 1
            if self.n_lines == self.at:
                raise self.stop("told to stop")
        return self


def spec_of(output: str) -> JobSpec:
    return parse({"pipeline": "kmeans", "input": "none", "output": output, "run_id": "r"})


def attempted(spec: JobSpec, client: object, attempt: Attempt, listener: Listener) -> Manifest:
    for name in ("a", "b/c"):
        attempt.write_bytes(name, f"{attempt.id} {name}".encode())
    storage.write_bytes(attempt.shared_url("checkpoints") + "/latest.json", b"{}")
    return manifest_of(attempt).model_copy(update={"spec": spec.model_dump(mode="json"), "files": attempt.files})


def read(run_url: str) -> Manifest | None:
    """What a reader finds: a manifest whose files are right, or none."""
    try:
        manifest = read_manifest(run_url)
    except StorageMissingError:
        return None
    for file in manifest.files:
        assert hashlib.sha256(storage.read_bytes(file.url)).hexdigest() == file.sha256
    return manifest


def run(spec: JobSpec, known: list[runner.RunResult]) -> runner.RunResult:
    client: Any = object()  # never asked: the stages are not run
    return runner.run(spec, client=client, on_commit=known.append)


def strike(at: int, stop: type[BaseException], is_beaten: bool, caplog: pytest.LogCaptureFixture) -> int:
    """Run a job that is told to stop at a line, look, and run it again; return how many lines there were."""
    output = f"memory://stops-{uuid.uuid4().hex}"
    spec, run_url = spec_of(output), f"{output}/r"
    if is_beaten:
        other = Attempt(run_url)
        manifest = attempted(spec, None, other, Listener())
    else:
        Attempt(run_url).write_bytes("half", b"of a run that was killed")
    known: list[runner.RunResult] = []
    striker = Striker(at, stop)
    result = None
    caplog.clear()

    def race(*arguments: Any) -> Manifest:
        made = attempted(*arguments)
        if is_beaten:
            other.commit(manifest)
        sys.settrace(striker)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_attempted", race)
        patch.setattr(runner, "watched", nullcontext)
        try:
            result = run(spec, known)
        except stop:
            pass
        finally:
            sys.settrace(None)
    found = read(run_url)
    told = result or (known[-1] if known else None)
    if told is not None:
        assert found == told.manifest
        assert told.was_committed == is_beaten
    elif not is_beaten and found is not None:
        assert "whether the manifest of this attempt was written is not known" in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_attempted", attempted)
        patch.setattr(runner, "watched", nullcontext)
        again = run(spec, known)
    assert read(run_url) == again.manifest
    assert again.was_committed == (found is not None)
    return striker.n_lines


@pytest.mark.parametrize(
    ("is_beaten", "stop"), [(False, StoppedError), (False, KeyboardInterrupt), (True, StoppedError)]
)
def test_a_stop_at_any_line_of_a_commit_loses_nothing(
    is_beaten: bool, stop: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    def strike_apart(at: int) -> int:
        """Leave nothing for the tests after it that a stop kept from being put back."""
        with restored([STALL_VARIABLE]):
            return contextvars.copy_context().run(strike, at, stop, is_beaten, caplog)

    n_lines = strike_apart(sys.maxsize)
    assert n_lines > 50
    for at in range(1, n_lines + 1):
        strike_apart(at)
