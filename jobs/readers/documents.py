"""Documents with or without labels, from CSV, TSV, JSON lines, Parquet or folders of text files.

The runner only plans: it lists the files and cuts them into parts; workers find the cuts and read the parts.
Called by the text_mining pipeline. How one part is parsed is in `jobs.readers.document_formats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from jobs import storage
from jobs.errors import InputError
from jobs.job import Job
from jobs.readers import document_formats as formats
from jobs.readers.document_formats import DocumentBlock, Part, Range
from jobs.readers.room import refuse_beyond_room

Format = Literal["csv", "tsv", "jsonl", "parquet", "folder"]

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "folder",
    ".text": "folder",
}
_PARTS_PER_WORKER = 4
# Text is there as bytes, as one string, and as Arrow's column.
_COPIES = 3
_SMALLEST_PART = 2**16
_LARGEST_PART = 2**25
# A Parquet row group is read whole for each piece of it, so it is not cut into more than that.
_MOST_PIECES = 8


@dataclass(frozen=True)
class DocumentSource:
    """Where documents are: parts in the order of their rows."""

    url: str
    parts: tuple[Part, ...]


def find_documents(
    job: Job, url: str, format: str, text_column: str, label_column: str | None, part_size: int | None = None
) -> DocumentSource:
    """List the files of `url` and cut them into parts of about `part_size` bytes.

    Parameters
    ----------
    job : Job
        Its workers look into the files; its manifest lists them.
    url : str
        A file, a folder or a glob.
    format : str
        csv, tsv, jsonl, parquet, folder, or auto: by the names of the files.
    text_column, label_column : str
        Columns that must be there; of `label_column` None there are no labels. Of folders of text files the folder's
        name is the label.
    part_size : int, optional
        By default such that each worker gets some parts.

    Raises
    ------
    InputError
        When a file is empty, is not of that format or lacks a column.
    StorageError
        When the files cannot be listed or read.
    """
    files = storage.list_files(url)
    kind = _format_of(url, files, format)
    for file in files:
        if file.size == 0 and kind != "folder":
            raise InputError(f"{file.url}: empty file; remove it or write it again")
    job.record_input(files)
    size = part_size or _part_size(sum(file.size for file in files), job.n_workers)
    columns = (text_column,) if label_column is None else (text_column, label_column)
    if kind == "folder":
        parts = _folder_parts(url, files, size, label_column is not None)
    elif kind == "parquet":
        parts = _parquet_parts(job, files, columns, size)
    else:
        parts = _line_parts(job, files, kind, columns, size)
    if not parts:
        raise InputError(f"{url}: no documents; put some there")
    return DocumentSource(url, tuple(parts))


def read_part(part: Part) -> DocumentBlock:
    """Read one part, on a worker. Rows without text, or without the label that was asked for, are dropped and counted.

    Raises
    ------
    InputError
        When the part is not of its format or not UTF-8, or does not fit into memory; it names file and position.
    """
    if part.format != "parquet":
        n_bytes = part.rows.end - part.rows.start
        what = f"a row, or a quoted field that is not closed, of {n_bytes:,} bytes"
        if part.format == "folder":
            what = f"{n_bytes:,} bytes of text in {part.members[0][0].rsplit('/', 1)[-1]} …"
        refuse_beyond_room(part.url, _COPIES * n_bytes, what, "mend or split the file")
    return formats.READERS[part.format](part)


def _format_of(url: str, files: Sequence[storage.StoredFile], format: str) -> Format:
    if format != "auto":
        if format not in get_args(Format):
            raise InputError(
                f"{url}: format {format!r} does not hold documents; use one of {', '.join(get_args(Format))}"
            )
        return format  # type: ignore[return-value]
    suffixes = {"." + file.url.rsplit("/", 1)[-1].rpartition(".")[2].lower() for file in files}
    kinds = {_SUFFIXES.get(suffix) for suffix in suffixes}
    kind = kinds.pop()
    if kinds or kind is None:
        raise InputError(
            f"{url}: cannot tell the format from file names that end in {', '.join(sorted(suffixes)[:5])}; "
            f"set input.format to one of {', '.join(get_args(Format))}"
        )
    return kind


def _part_size(n_bytes: int, n_workers: int) -> int:
    return min(max(n_bytes // (_PARTS_PER_WORKER * max(n_workers, 1)) + 1, _SMALLEST_PART), _LARGEST_PART)


def _folder_parts(url: str, files: Sequence[storage.StoredFile], size: int, is_labelled: bool) -> list[Part]:
    fs, path = storage.options_fs(url)
    root = fs.unstrip_protocol(path)
    wildcard = min((root.find(character) for character in "*?[" if character in root), default=-1)
    root = root[: root.rfind("/", 0, wildcard)] if wildcard >= 0 else root
    labels = []
    for file in files:
        folder, slash, _ = file.url[len(root) :].lstrip("/").partition("/")
        labels.append(folder if slash else None)
    if is_labelled and not any(labels):
        raise InputError(
            f"{url}: no class folders; put the texts into one folder a class, or set params.label_column to null"
        )
    parts: list[Part] = []
    members: list[tuple[str, str | None]] = []
    n_bytes = 0
    for place, (file, label) in enumerate(zip(files, labels, strict=True), start=1):
        members.append((file.url, label if is_labelled else None))
        n_bytes += file.size
        # Opening one costs, however small it is.
        if n_bytes + 1024 * len(members) >= size or place == len(files):
            parts.append(Part("folder", url, rows=Range(0, n_bytes), members=tuple(members), is_labelled=is_labelled))
            members, n_bytes = [], 0
    return parts


def _parquet_parts(job: Job, files: Sequence[storage.StoredFile], columns: tuple[str, ...], size: int) -> list[Part]:
    footers = job.map(formats.parquet_row_groups, [file.url for file in files], columns, unit="files")
    parts = []
    for file, groups in zip(files, footers, strict=True):
        for group, (n_rows, n_bytes) in enumerate(groups):
            n_pieces = min(max(-(-n_bytes // size), 1), _MOST_PIECES, n_rows)
            for piece in range(n_pieces):
                rows = Range(piece * n_rows // n_pieces, (piece + 1) * n_rows // n_pieces)
                parts.append(Part("parquet", file.url, columns, rows, row_group=group, is_labelled=len(columns) == 2))
    return parts


def _line_parts(
    job: Job, files: Sequence[storage.StoredFile], kind: Format, columns: tuple[str, ...], size: int
) -> list[Part]:
    job.map(storage.refuse_resized, list(files), unit="files")
    urls = [file.url for file in files]
    has_header = kind in ("csv", "tsv")
    headers = job.map(formats.header, urls, kind, columns, unit="files") if has_header else [((), 0) for _ in urls]
    pieces = [
        (at, Range(start, min(start + size, file.size)))
        for at, (file, (_, first)) in enumerate(zip(files, headers, strict=True))
        for start in range(first, file.size, size)
    ]
    looked = job.map(formats.row_ends, [(urls[at], piece, kind) for at, piece in pieces], unit="parts")
    parts: list[Part] = []
    is_quoted = False
    for (at, piece), (is_odd, after_plain, after_quoted) in zip(pieces, looked, strict=True):
        names, first = headers[at]
        if piece.start == first:
            start: int | None = first
            is_quoted = False
        else:
            start = after_quoted if is_quoted else after_plain
        is_quoted ^= is_odd
        if start is not None:  # else a row of the part before goes on through this piece
            parts.append(
                Part(kind, urls[at], columns, Range(start, files[at].size), header=names, is_labelled=len(columns) == 2)
            )
    ends = [
        after.rows.start if after.url == part.url else part.rows.end
        for part, after in zip(parts, [*parts[1:], Part(kind, "")], strict=False)
    ]
    cut = [replace(part, rows=Range(part.rows.start, end)) for part, end in zip(parts, ends, strict=True)]
    return [part for part in cut if part.rows.start < part.rows.end]
