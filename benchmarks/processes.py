"""Sides as processes: each in the environment of its library, with the threads that it may use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

ROOT = Path(__file__).parents[1]
_ENVIRONMENTS = ROOT / "benchmarks" / ".environments"
# Seconds that one order may take; the slowest, Spark's on a slow machine, takes two minutes.
_DEADLINE = 1800
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class NotAvailableError(Exception):
    """The peer cannot be run on this machine; says what is missing."""


class Side:
    """A side that has loaded a case. Its processes are stopped while it is not asked: they cost the other nothing.

    Parameters
    ----------
    module : str
        Of `benchmarks.sides`.
    work : str
        Which of its cases.
    folder : Path
        Of the data.
    settings : mapping
        Of the work.
    n_threads : int
        Of BLAS and OpenMP, in each process.
    """

    def __init__(self, module: str, work: str, folder: Path, settings: Mapping[str, Any], n_threads: int) -> None:
        threads = dict.fromkeys(_THREAD_VARIABLES, str(n_threads))
        self._process = subprocess.Popen(
            [_python(module), "-m", f"benchmarks.sides.{module}"],
            cwd=ROOT,
            env={**os.environ, **threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.versions: dict[str, str] = self._ask({"versions": True})
        self._ask({"load": work, "folder": str(folder), "settings": dict(settings)})

    def run(self) -> float:
        """Do the work once; return its seconds."""
        return float(self._ask({"run": True})["seconds"])

    def found(self) -> dict[str, Any]:
        """Return what the last run found."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "found.npz"
            self._ask({"save": str(file)})
            with np.load(file) as arrays:
                return {name: arrays[name] for name in arrays.files}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = threading.Timer(_DEADLINE, self._process.kill)
        deadline.start()
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            deadline.cancel()
            self._signal(signal.SIGSTOP)
        if not answer:
            raise RuntimeError(f"{' '.join(self._process.args[1:])}: ended at {order}; what it said is above")  # type: ignore[index]
        return dict(json.loads(answer))

    def _signal(self, number: int) -> None:
        """Send a signal to all processes of the side."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _python(module: str) -> str:
    """Return the interpreter of a side's environment, which is made where it does not exist."""
    if module.startswith("ours"):
        return sys.executable
    if module == "spark" and shutil.which("java") is None:
        raise NotAvailableError("Spark needs Java 17 or later, for instance Debian's openjdk-17-jre-headless")
    wanted = ROOT / "benchmarks" / "peers" / f"{module}.txt"
    folder = _ENVIRONMENTS / module
    python, made_of = folder / "bin" / "python", folder / wanted.name
    if not made_of.exists() or made_of.read_text() != wanted.read_text():
        uv = [str(Path(sys.executable).parent / "uv")]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, "-r", wanted], check=True)
        made_of.write_text(wanted.read_text())
    return str(python)
