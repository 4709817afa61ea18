"""How a run ended, as it is told to whoever started it."""

from __future__ import annotations

import errno
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from controller.observe import runner_of
from jobs.cli import outcome
from jobs.cli.app import app
from jobs.errors import SpecError, StoppedError, StorageDeniedError, WorkersLostError

COMMITTED = {"outcome": "committed", "run_url": "s3://demo/runs/a", "was_committed": False}


def test_an_error_is_told_with_its_class_its_exit_code_and_one_line() -> None:
    told = outcome.failure(StorageDeniedError("s3://demo/a:\n  access denied"))
    assert told == {
        "outcome": "failed",
        "error": "StorageDeniedError",
        "exit_code": 2,
        "message": "s3://demo/a: access denied",
    }
    assert outcome.failure(KeyError("x"))["exit_code"] == 1
    assert outcome.failure(KeyboardInterrupt())["exit_code"] == 130


def test_a_stop_that_a_library_took_for_a_failure_is_told_as_a_stop() -> None:
    error = ImportError("initialization failed")
    error.__cause__ = StoppedError("told to stop")
    told = {"outcome": "failed", "error": "StoppedError", "exit_code": 75, "message": "told to stop"}
    assert outcome.failure(error) == told
    assert outcome.exit_code(error) == 75


@pytest.mark.parametrize("n", [0, 3, 500])
def test_a_document_is_never_longer_than_kubernetes_keeps(n: int) -> None:
    metrics = {f"metric_ü_{i}": i / 7 for i in range(n)}
    data = outcome.encoded({**COMMITTED, "metrics": metrics})
    assert len(data) <= outcome.MAX_BYTES
    told = json.loads(data)
    assert told.items() >= COMMITTED.items()
    assert list(told["metrics"]) == list(metrics)[: len(told["metrics"])]
    assert len(told["metrics"]) == n or n == 500


def test_an_error_with_a_long_message_fits_too() -> None:
    assert len(outcome.encoded(outcome.failure(WorkersLostError("ü" * 9000)))) <= outcome.MAX_BYTES


def test_a_run_that_fails_leaves_why_and_one_before_it_leaves_nothing(tmp_path: Path) -> None:
    job, file = tmp_path / "job.yaml", tmp_path / "result.json"
    file.write_text(json.dumps(COMMITTED))
    content: dict[str, Any] = {"pipeline": "kmeans", "input": "memory://in", "output": "memory://out"}
    job.write_text(yaml.safe_dump(content))
    called = CliRunner().invoke(app, ["run", str(job), "--result", str(file)])
    assert called.exit_code == 2
    told = json.loads(file.read_text())
    assert (told["outcome"], told["error"], told["exit_code"]) == ("failed", "SpecError", 2)
    assert "input.url: memory://in is the memory of one process" in told["message"]


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    called = CliRunner().invoke(app, ["run", "-", "--result", str(tmp_path / "missing" / "file")])
    assert called.exit_code == 2
    assert "--result: " in called.output
    assert "cannot be written (No such file or directory); name another file" in " ".join(called.output.split())


@pytest.mark.parametrize("before", [None, "", json.dumps(COMMITTED), json.dumps(COMMITTED).ljust(9000)])
def test_whoever_reads_the_file_finds_a_whole_document_at_any_time(before: str | None, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    if before is not None:
        file.write_text(before)
    seen: list[str] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            with suppress(FileNotFoundError):
                seen.append(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(300):
            with suppress(ValueError), outcome.told_in(file) as tell:
                assert json.loads(file.read_text()) == {"outcome": "running"}
                if number % 2:
                    raise ValueError("x" * 900)
                tell({**COMMITTED, "metrics": {"a": number}})
            assert json.loads(file.read_text())["outcome"] == ("failed" if number % 2 else "committed")
    finally:
        is_over.set()
        reader.join()
    assert {json.loads(text)["outcome"] for text in seen if text != before} <= {"running", "failed", "committed"}
    assert list(tmp_path.iterdir()) == [file]


JOB = {"pipeline": "kmeans", "input": "memory://in", "output": "memory://out"}


@pytest.mark.parametrize("content", ["a,b\n1,2\n", '{"outcome": "x"}', "[1]", "1", '"committed"', "[" * 9000, " ", "{"])
@pytest.mark.parametrize("command", ["run", "preflight"])
def test_a_file_that_holds_no_result_is_not_written_over(command: str, content: str, tmp_path: Path) -> None:
    job, other = tmp_path / "job.yaml", tmp_path / "data.csv"
    job.write_text(yaml.safe_dump(JOB))
    other.write_text(content)
    (tmp_path / "link").symlink_to(job)
    for file in (job, tmp_path / "link", other):
        before = file.read_bytes()
        called = CliRunner().invoke(app, [command, str(job), "--result", str(file)])
        assert called.exit_code == 2
        assert "holds something else than a result; name another file" in " ".join(called.stderr.split())
        assert file.read_bytes() == before


@pytest.mark.timeout(60)
def test_a_pipe_that_nobody_reads_is_told_and_one_with_a_reader_gets_all(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SpecError, match=r"pipe: cannot be written"), outcome.told_in(pipe):
        pass
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with outcome.told_in(pipe) as tell:
            assert json.loads(os.read(reader, 9000)) == outcome.RUNNING
            tell(COMMITTED)
        assert json.loads(os.read(reader, 9000)) == COMMITTED
    finally:
        os.close(reader)


def test_a_link_and_what_is_no_file_are_written_in_place(tmp_path: Path) -> None:
    file, link = tmp_path / "mounted", tmp_path / "link"
    file.touch()
    link.symlink_to(file)
    number = file.stat().st_ino
    for path in (link, Path("/dev/null")):
        with outcome.told_in(path) as tell:
            tell(outcome.READY)
    assert (file.stat().st_ino, json.loads(file.read_text())) == (number, outcome.READY)
    assert link.is_symlink()
    assert Path("/dev/null").is_char_device()


def test_a_file_that_nothing_can_be_renamed_to_is_written_in_place_and_is_never_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")  # as Linux does where the target is a mount

    monkeypatch.setattr(outcome.os, "replace", refuse)
    file = tmp_path / "termination-log"
    file.write_text(json.dumps(COMMITTED).ljust(900))
    number = file.stat().st_ino
    sizes: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            sizes.append(file.stat().st_size)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            with outcome.told_in(file) as tell:
                assert json.loads(file.read_text()) == outcome.RUNNING
                tell(COMMITTED)
            assert json.loads(file.read_text()) == COMMITTED
    finally:
        is_over.set()
        looking.join()
    assert min(sizes) > 0
    assert (file.stat().st_ino, list(tmp_path.iterdir())) == (number, [file])


def test_a_file_that_cannot_be_written_any_more_changes_no_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    for error in (None, StorageDeniedError("s3://demo: denied")):
        folder.mkdir()
        with suppress(StorageDeniedError), outcome.told_in(folder / "result.json") as tell:
            (folder / "result.json").unlink()
            folder.rmdir()
            tell(COMMITTED)
            if error is not None:
                raise error
        assert "warning: --result: " in capsys.readouterr().err


def test_a_stop_after_the_end_was_told_is_not_told_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with suppress(StoppedError), outcome.told_in(file) as tell:
        tell(COMMITTED)
        raise StoppedError
    assert json.loads(file.read_text()) == COMMITTED


def test_of_a_container_that_was_killed_while_it_ran_the_controller_tells_so() -> None:
    end = {"exitCode": 137, "reason": "OOMKilled", "message": outcome.encoded(outcome.RUNNING).decode()}
    pod = {"status": {"containerStatuses": [{"state": {"terminated": end}}]}}
    job = {"metadata": {}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    runner = runner_of(job, [pod])
    assert runner is not None
    assert runner.last_line == "killed in the midst of it (OOMKilled)"
