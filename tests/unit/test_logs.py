"""Logs are copied beside a run; they are no part of it, and what sweeps attempts leaves them."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import logs, storage
from jobs.artifacts import Attempt, Manifest
from jobs.cli.app import app
from jobs.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "container-logs"
    (folder / "runner").mkdir(parents=True)
    (folder / "runner" / "0.log").write_bytes(b"of the runner\n")
    (folder / "scheduler.log").write_bytes(b"of the scheduler\n")
    return folder


def commit(attempt: Attempt) -> None:
    attempt.write_bytes("model.json", b"{}")
    now = datetime(2026, 11, 2, tzinfo=UTC)
    attempt.commit(
        Manifest(
            run_id="r",
            pipeline="kmeans",
            spec={},
            attempt=attempt.id,
            headline="inertia",
            metrics={"inertia": 1.0},
            n_rows=1,
            n_workers=1,
            seed=0,
            seconds=1.0,
            started_at=now,
            committed_at=now,
            stages=[],
            inputs=[],
            files=attempt.files,
            package_version="0",
            git_commit=None,
            versions={},
        )
    )


def test_every_file_below_the_folder_is_copied_to_s3(folder: Path, s3: str) -> None:
    run_url = f"{s3}/runs/r"
    done = CliRunner().invoke(app, ["save-logs", str(folder), run_url])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{run_url}/logs/runner/0.log  14 bytes",
        f"{run_url}/logs/scheduler.log  17 bytes",
    ]
    assert storage.read_bytes(f"{run_url}/logs/runner/0.log") == b"of the runner\n"
    assert len(storage.list_files(run_url)) == 2


def test_a_mounted_config_map_is_read_by_its_links(folder: Path, tmp_path: Path) -> None:
    kept = folder / "..2026_11_28"
    kept.mkdir()
    (kept / "attempt-1.log").write_text("said")
    (folder / "..data").symlink_to(kept.name)
    (folder / "attempt-1.log").symlink_to("..data/attempt-1.log")
    saved = [url for url, _ in logs.save(folder, str(tmp_path / "run")).files]
    assert [url for url in saved if "2026" in url or "..data" in url] == []
    assert str(tmp_path / "run/logs/attempt-1.log") in saved


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not for everybody")
    (folder / "link.log").symlink_to(tmp_path / "secret")
    (folder / "links").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    saved = logs.save(folder, str(tmp_path / "runs" / "r"))
    assert sorted(url.rsplit("/logs/")[1] for url, _ in saved.files) == ["runner/0.log", "scheduler.log"]


def test_of_a_long_file_the_end_is_kept(folder: Path, tmp_path: Path) -> None:
    with (folder / "scheduler.log").open("ab") as file:
        file.write(b"x" * logs.MAX_BYTES + b"the last words\n")
    logs.save(folder, str(tmp_path / "r"))
    kept = (tmp_path / "r" / "logs" / "scheduler.log").read_bytes()
    assert len(kept) == logs.MAX_BYTES
    assert kept.endswith(b"xthe last words\n")


def test_of_too_many_files_the_latest_are_kept_and_the_rest_counted(folder: Path, tmp_path: Path) -> None:
    for i in range(logs.MAX_FILES):
        path = folder / f"{i:03}.log"
        path.write_text("later")
        os.utime(path, ns=(2**61 + i, 2**61 + i))
    done = CliRunner().invoke(app, ["save-logs", str(folder), str(tmp_path / "r")])
    assert done.exit_code == 0
    assert "2 more files, changed before these, left out" in " ".join(done.stderr.split())
    names = {path.name for path in (tmp_path / "r" / "logs").rglob("*.log")}
    assert names == {f"{i:03}.log" for i in range(logs.MAX_FILES)}


def test_saved_again_they_are_written_over(folder: Path, tmp_path: Path) -> None:
    logs.save(folder, str(tmp_path / "r"))
    (folder / "scheduler.log").write_bytes(b"more\n")
    logs.save(folder, str(tmp_path / "r"))
    assert (tmp_path / "r" / "logs" / "scheduler.log").read_bytes() == b"more\n"


def test_an_empty_folder_has_nothing_to_save(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert logs.save(tmp_path / "empty", str(tmp_path / "r")) == logs.SavedLogs([], 0)


@pytest.mark.parametrize("name", ["absent", "file"])
def test_what_is_no_folder_is_one_line_and_exit_code_2(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    with pytest.raises(InputError, match="cannot be read"):
        logs.save(tmp_path / name, str(tmp_path / "r"))
    done = CliRunner().invoke(app, ["save-logs", str(tmp_path / name), str(tmp_path / "r")])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path / name}: cannot be read (")


def test_storage_that_does_not_take_them_is_exit_code_2(folder: Path, s3: str) -> None:
    done = CliRunner().invoke(app, ["save-logs", str(folder), "s3://no-such-bucket-here/runs/r"])
    assert done.exit_code == 2
    assert "no such bucket" in done.stderr


def test_neither_a_commit_nor_a_discarded_attempt_removes_logs_of_a_run(folder: Path, s3: str) -> None:
    run_url = f"{s3}/runs/r"
    killed, failed, last = Attempt(run_url), Attempt(run_url), Attempt(run_url)
    killed.write_bytes("half.json", b"{}")
    logs.save(folder, run_url)
    failed.write_bytes("half.json", b"{}")
    failed.discard()
    failed.remove_shared()
    commit(last)
    names = [file.url.removeprefix(f"{run_url}/") for file in storage.list_files(run_url)]
    assert sorted(names) == [
        f"attempts/{last.id}/model.json",
        "logs/runner/0.log",
        "logs/scheduler.log",
        "manifest.json",
    ]
    assert [file.name for file in last.files] == ["model.json"]


def test_the_command_is_not_among_those_of_users_and_loads_nothing_heavy(folder: Path, tmp_path: Path) -> None:
    assert "save-logs" not in CliRunner().invoke(app, ["--help"]).stdout
    heavy = ("torch", "pandas", "dask", "distributed", "numpy", "sklearn", "numba", "pyarrow", "s3fs")
    code = (
        "import sys, jobs.cli\nsys.argv = ['daskyard', 'save-logs', *sys.argv[1:]]\n"
        "try: jobs.cli.main()\nexcept SystemExit as end: assert not end.code, end\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"
