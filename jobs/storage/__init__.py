"""Files by URL on any storage that fsspec knows: s3://, file://, memory://, plain paths.

Endpoint and credentials come from the environment (`AWS_*`, `FSSPEC_S3_*`), read by botocore and fsspec themselves:
nothing here names them, so nothing here can leak them into a task or a log.
"""

from jobs.storage.errors import mapped
from jobs.storage.files import (
    StoredFile,
    create,
    exists,
    list_files,
    list_sizes,
    oddity,
    open_input,
    options_fs,
    read_bytes,
    read_versioned,
    refuse_resized,
    remove_tree,
    replace,
    size_of,
    write_bytes,
)
from jobs.storage.tries import stalling_after
from jobs.urls import join

__all__ = [
    "StoredFile",
    "create",
    "exists",
    "join",
    "list_files",
    "list_sizes",
    "mapped",
    "oddity",
    "open_input",
    "options_fs",
    "read_bytes",
    "read_versioned",
    "refuse_resized",
    "remove_tree",
    "replace",
    "size_of",
    "stalling_after",
    "write_bytes",
]
