"""The process of a side: loads a case once, then does its work whenever the benchmark says so.

One JSON object a line each way: {"load": case, "folder": …, "settings": {…}}, {"run": true}, {"save": file},
{"versions": true}. A case is a function of the data's folder and settings that returns two: one that does the work,
which alone is timed, and one that makes a dict of arrays of what it returned. Needs nothing but NumPy.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Work = tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]


def serve(cases: Sequence[Callable[..., Work]], packages: Sequence[str]) -> None:
    """Answer on what was standard output until standard input ends; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    by_name = {case.__name__: case for case in cases}
    work: Work | None = None
    result: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if "versions" in order:
            answer = {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in packages},
            }
        elif "load" in order:
            work = by_name[order["load"]](Path(order["folder"]), **order["settings"])
        elif "run" in order:
            assert work is not None
            result = None
            gc.collect()
            start = time.perf_counter()
            result = work[0]()
            answer = {"seconds": time.perf_counter() - start}
        else:
            assert work is not None
            np.savez(order["save"], **work[1](result))
        print(json.dumps(answer), file=answers, flush=True)
