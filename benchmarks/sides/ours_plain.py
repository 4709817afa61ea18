"""The cases as Daskyard does them, on the same cluster without TLS: what that costs is the difference to `ours`."""

from __future__ import annotations

from typing import Any

from benchmarks.sides import ours
from jobs import local_cluster


class _Plain(local_cluster._Cluster):
    """The local cluster, of processes that talk to whoever comes."""

    def __init__(self, prefix: str, **options: Any) -> None:
        for part in (options["scheduler"], options["worker"]):
            part["options"] |= {"protocol": "tcp://", "security": None}
        super().__init__(prefix, **options | {"security": None})


if __name__ == "__main__":
    local_cluster._Cluster = _Plain  # type: ignore[misc]
    ours.main()
