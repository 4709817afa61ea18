"""A stop may strike at any call of the command line, also before and behind a command: it ends as a stop does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

# Prints how many calls there are while signals are heeded and, for each call struck, the exit code and standard error.
STRUCK = """
import json, os, signal, sys, tempfile
from jobs.cli import app, stops

def run(at, sent):
    n = 0
    def count(frame, event, argument):
        nonlocal n
        if event == "call" and signal.getsignal(signal.SIGTERM) is stops._stop:
            n += 1
            if n == at:
                sys.setprofile(None)
                os.kill(os.getpid(), sent)
    sys.argv = ["daskyard", "pipelines"]
    sys.setprofile(count)
    try:
        app.main()
    finally:
        sys.setprofile(None)
        if not at:
            os.write(told, str(n).encode())

def forked(at, sent):
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run(at, sent)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return status, said.read().decode()

counted, told = os.pipe()
forked(0, 0)
n = int(os.read(counted, 100))
edge = 15
moments = sorted({*range(1, edge), *range(1, n, n // 20), *range(n - edge, n + 1)})
ends = {at: forked(at, int(sys.argv[-1])) for at in moments}
print(json.dumps({"n": n, "ends": ends}))
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stop_at_any_call_ends_as_a_stop(sent: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", STRUCK, str(int(sent))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    assert found["n"] > 500
    assert {at: end for at, end in found["ends"].items() if end[0] != code or "Traceback" in end[1]} == {}
