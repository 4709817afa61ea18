"""What the product runs in somebody's folder: a package or file there with the name of a module of ours is not taken.

The commands are those of the charts, with this environment's Python.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HOOK_S = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder where whoever looks for modules there fails."""
    folder = tmp_path / "theirs"
    (folder / "jobs").mkdir(parents=True)
    standard = ("json", "socket", "signal", "random", "selectors", "struct", "threading", "pickle")
    for name in ("jobs/__init__", "controller", "torch", "dask", "distributed", "numpy", *standard):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} of somebody else')\n")
    return folder


def run(command: list[object], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def here(command: list[str]) -> list[object]:
    """A pod's command with this environment's programs."""
    return [BIN / command[0], *command[1:]]


def found(tree: Any, key: str) -> list[Any]:
    """All values of `key` in a manifest."""
    if isinstance(tree, list):
        return [value for item in tree for value in found(item, key)]
    if isinstance(tree, dict):
        return [value for k, v in tree.items() for value in ([v] if k == key else found(v, key))]
    return []


def example() -> list[Any]:
    return list(yaml.safe_load_all((ROOT / "examples" / "daskjobs" / "california.yaml").read_text()))


def test_a_training_runs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3))
    lines = [f"{a:.3f},{b:.3f},{'yes' if a + b + c > 0 else 'no'}" for a, b, c in rows]
    (folder / "rows.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")
    (folder / "job.yaml").write_text(
        "pipeline: neural_network\ninput: {url: rows.csv}\noutput: runs\n"
        "params: {target: y, task: classification, epochs: 1, world_size: 2}\n"
    )
    done = run([BIN / "daskyard", "run", "job.yaml", "--workers", 2], folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


def test_the_hook_of_a_worker_runs(folder: Path) -> None:
    [hook] = {tuple(each["exec"]["command"]) for each in found(example(), "preStop")}
    there = {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:1", "DASK_WORKER_NAME": "w"}
    done = run(here(list(hook)), folder, **there)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to save" in done.stdout


def test_the_controller_starts(folder: Path) -> None:
    deployment = (ROOT / "charts" / "platform" / "templates" / "controller" / "deployment.yaml").read_text()
    [command] = re.findall(r"command: \[(python.*)\]", deployment)
    done = run([*here(command.split(", ")), "--help"], folder)
    assert done.returncode == 0, done.stderr


def test_the_preloads_of_a_scheduler_are_ours(folder: Path) -> None:
    [arguments] = [each for each in found(example(), "args") if each[:2] == ["dask", "scheduler"]]
    port, pages = "0", "127.0.0.1:0"
    changed = {"--port": port, "--dashboard-address": pages}
    arguments = [changed.get(before, each) for before, each in zip(["", *arguments], arguments, strict=False)]
    with (folder / "log").open("wb") as log:
        scheduler = subprocess.Popen(
            list(map(str, [*here(arguments), "--host", "127.0.0.1"])), cwd=folder, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + HOOK_S
        while not (place := re.search(r"dashboard at:\s+(\S+?)/status", (folder / "log").read_text())):
            assert scheduler.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        url = place[1] if place[1].startswith("http") else f"http://{place[1]}"
        with urllib.request.urlopen(f"{url}/daskyard/state", timeout=30) as answer:
            assert answer.status == 200
    finally:
        scheduler.terminate()
        scheduler.wait(30)


def test_a_command_beside_the_s3_server_runs(folder: Path) -> None:
    code = "import os; print(os.environ['AWS_ENDPOINT_URL'])"
    guide = (ROOT / "docs" / "guide.md").read_text()
    assert set(re.findall(r"python.* -m jobs\.local_s3", guide)) == {"python -P -m jobs.local_s3"}
    done = run([BIN / "python", "-P", "-m", "jobs.local_s3", "objects", sys.executable, "-c", code], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")
