"""What `daskyard run` says where its cluster fails: one line, the exit code, and nothing of Dask's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from jobs import cluster as jobs_cluster
from jobs.cluster import connected
from jobs.errors import SpecError
from jobs.job import workers_lost

pytestmark = pytest.mark.timeout(150)

# A scheduler that loses every graph after the first few.
LOSE_GRAPHS = """
import logging

def dask_setup(scheduler):
    take, n_taken = scheduler.stream_handlers["update-graph"], [0]

    async def update_graph(**message):
        n_taken[0] += 1
        if n_taken[0] <= 2:
            return await take(**message)
        logging.getLogger("distributed.scheduler").error("AssertionError: <TaskState 'new' processing>")

    scheduler.stream_handlers["update-graph"] = update_graph
"""
# Stands for a machine where no folder can be written: root can write anywhere.
NO_FOLDER = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc/nowhere"]
from jobs.cli.app import main
if __name__ == "__main__":
    main()
"""


def run(folder: Path, *more: str, program: tuple[str, ...] = ("-m", "jobs.cli"), **env: str) -> tuple[int, str, Any]:
    """Return exit code, standard error and result of a run on two columns of numbers, or on what is there."""
    table = folder / "t.csv"
    if not table.exists():
        rows = np.random.default_rng(0).random((200, 2))
        table.write_text("a,b\n" + "\n".join(f"{a},{b}" for a, b in rows))
    job = {
        "pipeline": "kmeans",
        "input": {"url": str(table)},
        "output": str(folder / "out"),
        "params": {"n_clusters": 2},
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, *program, "run", "job.yaml", "--workers", "1", "--result", "result.json", *more]
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=140, check=False, env={**os.environ, **env}
    )
    return ended.returncode, ended.stderr, json.loads((folder / "result.json").read_text() or "{}")


def test_a_run_whose_scheduler_lost_a_graph_ends_with_75_and_the_last_line_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "lose_graphs.py").write_text(LOSE_GRAPHS)
    preload = str(tmp_path / "lose_graphs.py")
    code, stderr, result = run(
        tmp_path, DASK_DISTRIBUTED__SCHEDULER__PRELOAD=preload, DASK_DASKYARD__STALLED_AFTER="2s"
    )
    assert (code, result["error"]) == (75, "WorkersLostError")
    assert "for 2 s" in result["message"]
    assert "AssertionError: <TaskState 'new' processing>; run the job again" in result["message"]
    assert stderr.splitlines()[-1].startswith("error: scheduler: nothing has led to ")


@pytest.mark.parametrize("is_debug", [False, True], ids=["plain", "--debug"])
def test_a_task_that_fails_leaves_no_traceback_of_dask_without_debug(tmp_path: Path, is_debug: bool) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4,5,6\n")
    code, stderr, _ = run(tmp_path, *(["--debug"] if is_debug else []))
    assert code == 2
    assert stderr.splitlines()[-1].startswith("error: ")
    for text in ("Compute Failed", "Traceback"):
        assert (text in stderr) is is_debug


def test_a_machine_without_a_folder_for_temporary_files_is_exit_2(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(NO_FOLDER)
    code, stderr, _ = run(tmp_path, program=("program.py",), PYTHONPATH=str(Path(__file__).parents[2]))
    assert code == 2
    assert "temporary files cannot be written there" in stderr.splitlines()[-1]
    assert "TMPDIR" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root that may mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_folder_for_temporary_files_that_is_full_is_exit_2(tmp_path: Path, small_disk: Path) -> None:
    code, stderr, _ = run(tmp_path, TMPDIR=str(small_disk))  # the report of the run does not fit
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"error: {small_disk}: temporary files cannot be written there")
    assert "TMPDIR" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "TMP"])
@pytest.mark.parametrize("kind", ["missing", "a file", "no place for files", "read-only", "full"])
def test_a_folder_for_temporary_files_that_python_would_pass_over_is_refused(
    kind: str, variable: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    match kind:
        case "a file":
            folder.touch()
        case "no place for files":
            folder = Path("/proc")
        case "read-only":
            folder = request.getfixturevalue("small_disk")
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        case "full":
            folder = request.getfixturevalue("small_disk")
            (folder / "fill").write_bytes(bytes(256 << 10))
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(folder))
    said = rf"^{folder}: temporary files cannot be written there \(.+\); make room, or have TMPDIR name another folder$"
    with pytest.raises(SpecError, match=said), connected(1):
        pass


def test_a_run_whose_folder_for_temporary_files_is_missing_is_exit_2(tmp_path: Path) -> None:
    code, stderr, result = run(tmp_path, TMPDIR=str(tmp_path / "missing"))
    assert (code, result["error"]) == (2, "SpecError")
    assert stderr.splitlines()[-1].startswith(f"error: {tmp_path}/missing: temporary files cannot be written there")


def block(_: int) -> Any:
    return np.ones(8 << 20)


def test_workers_without_room_for_what_they_spill_say_so(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(jobs_cluster._LOCAL, "distributed.scheduler.no-workers-timeout", "5s")
    with dask.config.set({"temporary-directory": str(small_disk)}), connected(1, "400MiB") as client:
        blocks = client.map(block, range(16), pure=False)
        with pytest.raises(Exception, match="worker") as raised:
            client.submit(len, blocks, pure=False).result(timeout=100)
        error = workers_lost(raised.value, client)
    assert type(error) is SpecError
    assert str(error).startswith(f"{small_disk}/")
    assert "TMPDIR" in str(error)
    assert "Traceback" not in capfd.readouterr().err
