"""Gets a data set: from DASKYARD_DATA_DIR, the cache or its sources; then uploads it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs import storage
from jobs.datasets import convert
from jobs.datasets.base import Dataset, check, sha256
from jobs.datasets.catalogue import find
from jobs.datasets.sources import Folder
from jobs.errors import DaskyardError, InputError, StorageError
from jobs.listener import Listener
from jobs.temporary import held_folder

DATA_DIR = "DASKYARD_DATA_DIR"
INDEX = "index.json"


def fetch(name: str, url: str, listener: Listener | None = None) -> list[storage.StoredFile]:
    """Put the files of data set `name` into the folder `url`.

    Parameters
    ----------
    name : str
        One of `jobs.datasets.DATASETS`.
    url : str
        Any storage URL; the files are named by the data set.
    listener : Listener, optional
        Who is told of downloads and uploads.

    Returns
    -------
    list of StoredFile
        What lies at `url` now, of this data set.

    Raises
    ------
    SpecError
        No such data set.
    InputError
        A source file is not the one that is known.
    StorageError
        No source answered, or `url` cannot be written.
    """
    listener = listener or Listener()
    dataset = find(name)
    with _local(dataset, listener) as folder:
        paths = [path for path in sorted(folder.iterdir()) if path.name != INDEX]
        urls = []
        for done, path in enumerate(paths):
            listener.progress("upload", done, len(paths), "files")
            urls.append(storage.join(url, path.name))
            storage.write_bytes(urls[-1], path.read_bytes())
        listener.progress("upload", len(paths), len(paths), "files")
    return [storage.list_files(each)[0] for each in urls]


@contextlib.contextmanager
def _local(dataset: Dataset, listener: Listener) -> Iterator[Path]:
    """Yield a folder that holds the files which the pipelines read, and perhaps the cache's index."""
    data_dir = os.environ.get(DATA_DIR)
    given = _given(dataset, Path(data_dir)) if data_dir else None
    if data_dir and given is not None:
        listener.message(f"{dataset.name}: {', '.join(given)} from {data_dir} ({DATA_DIR})")
        with held_folder("data") as work:
            source, target = _two_folders(work)
            Folder(Path(data_dir)).get(list(given), source, listener)
            _check_all(source, given)
            (dataset.convert if given is dataset.files else convert.copy)(source, target)
            yield target
        return
    cached = _cache_folder(dataset)
    if not _is_whole(cached):
        _fill(dataset, cached, listener)
    yield cached


def _given(dataset: Dataset, folder: Path) -> Mapping[str, str] | None:
    """Which form of the data set `folder` holds, the data set's own before its substitutes."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; correct or unset {DATA_DIR}")
    for form in (dataset.files, *dataset.substitutes):
        if all((folder / name).is_file() for name in form):
            return form
    return None


def _cache_folder(dataset: Dataset) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    content = json.dumps([dataset.version, dict(dataset.files)])
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    return Path(base) / "daskyard" / f"{dataset.name}-{key}"


def _is_whole(folder: Path) -> bool:
    """Whether the cache holds what was once put there; a damaged one is fetched again."""
    try:
        index = json.loads((folder / INDEX).read_text())
        return all(sha256(folder / name) == digest for name, digest in index.items())
    except (OSError, ValueError, InputError):
        return False


def _fill(dataset: Dataset, cached: Path, listener: Listener) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the last step is one rename: the cache has all of a data set or nothing.
    with held_folder(dataset.name, cached.parent) as work:
        source, target = _two_folders(work)
        _download(dataset, source, listener)
        _check_all(source, dataset.files)
        dataset.convert(source, target)
        index = {path.name: sha256(path) for path in sorted(target.iterdir())}
        (target / INDEX).write_text(json.dumps(index, indent=2))
        # Somebody else may have been first, and may be reading it: then theirs stays.
        if _is_whole(cached):
            return
        if cached.exists():
            cached.rename(work / "damaged")
        try:
            target.rename(cached)
        except OSError:
            if not _is_whole(cached):
                raise


def _download(dataset: Dataset, folder: Path, listener: Listener) -> None:
    reasons = []
    for source in dataset.sources:
        try:
            source.get(list(dataset.files), folder, listener)
            return
        except DaskyardError as error:
            reasons.append(str(error))
    forms = " or ".join(", ".join(form) for form in (dataset.files, *dataset.substitutes))
    raise StorageError(
        f"data set {dataset.name}: {'; '.join(reasons)}; or put {forms} into a folder and name it in {DATA_DIR}"
    )


def _check_all(folder: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        check(folder / name, expected)


def _two_folders(work: Path) -> tuple[Path, Path]:
    folders = work / "source", work / "target"
    for folder in folders:
        folder.mkdir()
    return folders
