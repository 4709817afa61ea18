"""`python -m tests.strikes SIGNAL STEP EDGE ARGUMENTS…`: the command line, struck by a signal at call after call.

Each time in a process of its own, at each call of a Python function, also of libraries, while the command line heeds
signals: at every `STEP`th one, and at the `EDGE` first and last ones. `run` begins with the commit, what is before it
left out. Prints JSON: how many calls there are, and for each one struck the exit code, standard error, and whether the
run was committed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from jobs import runner
from jobs.cli import app, stops
from tests.unit.test_stops import attempted


class _Striker:
    def __init__(self, at: int, sent: int) -> None:
        self._at, self._sent, self.n = at, sent, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and signal.getsignal(signal.SIGTERM) is stops._stop and not stops._is_over:
            self.n += 1
            if self.n == self._at:
                sys.setprofile(None)
                os.kill(os.getpid(), self._sent)


def _prepare(striker: _Striker, arguments: list[str]) -> None:
    """Have the striker begin with the command, or with the commit of a run without a cluster."""
    sys.argv = ["daskyard", *arguments]
    if arguments[0] != "run":
        sys.setprofile(striker)
        return
    module: Any = runner

    @contextmanager
    def connected(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(dashboard_link="none")

    def stages(*given: Any) -> Any:
        made = attempted(*given)
        sys.setprofile(striker)
        return made

    module.connected, module.watched, module._attempted = connected, nullcontext, stages
    module.Telling = lambda listener, client: listener


def _in_child(at: int, sent: int, arguments: list[str], output: int) -> None:
    striker = _Striker(at, sent)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    code: Any = 99
    try:
        _prepare(striker, arguments)
        app.main()
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__} came out\n")
    finally:
        sys.setprofile(None)
        os.write(output, str(striker.n).encode())
        sys.stderr.flush()
        os._exit(code)


def _struck(at: int, sent: int, arguments: list[str]) -> tuple[int, str, int]:
    """Return exit code, standard error and the number of calls."""
    counted, output = os.pipe()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 2)
            _in_child(at, sent, arguments, output)
        os.close(output)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        n = int(os.read(counted, 100) or 0)  # nothing of one that was struck: it ends on the spot
        os.close(counted)
        said.seek(0)
        return code, said.read().decode(), n


def main() -> None:
    """Strike."""
    sent, step, edge = map(int, sys.argv[1:4])
    arguments = sys.argv[4:]
    # No TemporaryDirectory: the processes that are struck would remove it, as they end in order.
    folder = tempfile.mkdtemp()
    try:
        if arguments == ["run"]:
            job = Path(folder, "job.yaml")
            job.write_text(f"{{pipeline: kmeans, input: none, output: {folder}/runs, params: {{n_clusters: 2}}}}\n")
            arguments = ["run", str(job), "--run-id"]

        def strike(at: int) -> tuple[int, str, int, bool]:
            found = _struck(at, sent, [*arguments, f"r{at}"] if arguments[0] == "run" else arguments)
            return *found, Path(folder, "runs", f"r{at}", "manifest.json").exists()

        code, said, n, _ = strike(0)
        assert code == 0, said
        moments = sorted({*range(1, edge), *range(1, n, step), *range(max(n - edge, 1), n + 1)})
        json.dump({"n": n, "ends": {at: strike(at) for at in moments}}, sys.stdout)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
