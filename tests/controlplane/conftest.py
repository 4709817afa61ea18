"""A control plane with the platform in it, once a session; skipped, and said, where the programs for it are missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane.kubelet import Kubelet, kubelet, node
from tests.controlplane.plane import PROGRAM, Plane, plane


@pytest.fixture(scope="session")
def _plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plane, Kubelet]]:
    missing = [name for name in ("helm", "kubectl", "kwok") if shutil.which(name) is None]
    if missing or not PROGRAM.exists():
        pytest.skip(f"no control plane: {', '.join(missing) or PROGRAM} is missing")
    with plane(Path(tmp_path_factory.mktemp("plane"))) as made:
        made.apply(node())
        with kubelet(made.client) as played, made.operator():
            yield made, played


@pytest.fixture
def cluster(_plane: tuple[Plane, Kubelet]) -> Plane:
    """Return the control plane."""
    return _plane[0]


@pytest.fixture
def pods(_plane: tuple[Plane, Kubelet]) -> Iterator[Kubelet]:
    """Return what plays the pods; its script is the default one again after the test."""
    played = _plane[1]
    yield played
    played.script = played.by_runners
    played.runners.clear()
