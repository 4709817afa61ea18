"""Holds the charts against what Kubernetes and its linters ask, without a cluster; `make charts-test` runs this."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if items and shutil.which("helm") is None:
        raise pytest.UsageError(
            "helm is not on the PATH: install it (https://helm.sh), then run make charts-test again"
        )
