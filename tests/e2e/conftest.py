"""The scenarios run on the cluster that `make kind-up images deploy data` left; `make e2e` does all of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kube

_SECONDS: dict[str, float] = {}
_OUTCOMES: dict[str, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    start = time.monotonic()
    yield
    _SECONDS[item.nodeid] = time.monotonic() - start


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _OUTCOMES[report.nodeid] = report.outcome


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("scenarios")
    for nodeid, seconds in _SECONDS.items():
        scenario = nodeid.split("::", 1)[1].removeprefix("test_").replace("_", " ")
        terminalreporter.write_line(f"{_OUTCOMES.get(nodeid, '?'):8} {seconds:6.0f} s  {scenario}")
    terminalreporter.write_line(f"{'':8} {sum(_SECONDS.values()):6.0f} s  in all")


@pytest.fixture(scope="session", autouse=True)
def storage() -> Iterator[None]:
    """MinIO of the cluster is this process's S3 server too."""
    import s3fs

    with kube.minio() as environment:
        before = dict(os.environ)
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_S3_"))]:
            del os.environ[name]
        os.environ.update(environment)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
