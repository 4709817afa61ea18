"""Finds out whether an output's storage creates a file only where there is none, which is what a commit rests upon.

Some stores take ``If-None-Match`` and ignore it: each of two racing runs would believe that it won, and remove the
other's files. Called by the preflight, and by the runner before a run's first file.
"""

from __future__ import annotations

import os

from jobs import storage
from jobs.errors import OutputError, StorageDeniedError

# Below the output. It stays there, so that credentials which may create and do nothing else are enough.
PROBE = "_daskyard/conditional"
_CONTENT = b"Daskyard creates this file again and again: storage has to refuse it. It can be removed at any time.\n"
# Somebody may remove the file between two tries, hardly each time.
_N_TRIES = 4


def refuse_unconditional(output: str) -> None:
    """Create a small file below `output` if it is missing, and once more, which has to be refused.

    It shows as well that the output can be written.

    Raises
    ------
    OutputError
        When storage creates again what is there.
    StorageError
        When storage cannot be written.
    """
    url = storage.join(output, PROBE)
    for _ in range(_N_TRIES):
        try:
            if not storage.create(url, _CONTENT):
                return
        except StorageDeniedError:
            if not _is_anothers(url, output):
                raise
            return
    raise OutputError(
        f"{output}: this storage ignores If-None-Match: it created {PROBE} {_N_TRIES} times, one over the other; of "
        "two racing runs each would take itself for the winner; write to a store with conditional writes, such as S3"
    )


def _is_anothers(url: str, output: str) -> bool:
    """Whether the file is that of another user of a shared folder on a disk: one may write beside it, not over it."""
    fs, path = storage.options_fs(output)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "file" in protocols and storage.exists(url) and os.access(path, os.W_OK | os.X_OK)
