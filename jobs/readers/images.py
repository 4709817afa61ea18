"""Labelled images in the users' formats: found by one task, decoded in parts by many.

`scan` looks at names and a few headers and returns a `Scan`; `decode` turns one of its parts into arrays. Formats:
``folder`` (a folder a class, ``train/`` and ``test/`` above them if there is a test set), ``cifar10`` (the official
batches, binary or python) and ``idx``; each as plain files or inside zip and tar archives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs import storage
from jobs.errors import InputError
from jobs.readers.image_archives import Entry, list_entries, read_entries
from jobs.readers.image_formats import (
    IMAGE_SUFFIXES,
    Images,
    UndecodableImageError,
    decode_picture,
    idx_shape,
    picture_shape,
    read_cifar10_binary,
    read_cifar10_names,
    read_cifar10_python,
    read_idx,
    resized,
)
from jobs.readers.room import refuse_beyond_room, room
from jobs.storage import StoredFile

_IMAGES_PER_PART = 2048
_N_PROBED = 64
# An image of a part is there as it is decoded, stacked, and as what is chosen of it.
_IMAGE_COPIES, _BATCH_COPIES = 4, 4
_SPLITS = ("train", "test")
_SMALLEST = 8
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Listing:
    """The objects of an input, as storage lists them."""

    url: str
    files: tuple[StoredFile, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and etags: changes whenever the content does."""
        lines = "\n".join(f"{f.url} {f.size} {f.etag}" for f in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def summary(self) -> list[StoredFile]:
        """What the manifest lists: the objects, or one entry for all where there are many."""
        if len(self.files) <= 100:
            return list(self.files)
        return [
            StoredFile(f"{self.url} ({len(self.files)} objects)", sum(f.size for f in self.files), self.fingerprint)
        ]


@dataclass(frozen=True)
class Part:
    """What one task decodes: picture files with their labels, a CIFAR-10 batch, or an IDX pair (images, labels).

    `first` is the number of its first image among all images of the part's split.
    """

    split: str
    first: int
    entries: tuple[Entry, ...]
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scan:
    """An input understood: its format, classes, the shape of each image after decoding, and its parts."""

    url: str
    format: str
    classes: tuple[str, ...]
    shape: Shape
    is_resized: bool
    parts: tuple[Part, ...]
    n_ignored: int

    @property
    def has_test_set(self) -> bool:
        """Whether some of the images are set aside for tests by the input itself."""
        return any(part.split == "test" for part in self.parts)


@dataclass(frozen=True)
class Decoded:
    """Images (n, height, width, channels), labels (n,) and numbers (n,) in their split; those that failed are named."""

    images: Images
    labels: NDArray[np.int64]
    numbers: NDArray[np.int64]
    bad: tuple[str, ...]


def list_input(url: str) -> Listing:
    """List the objects of an input. Raises StorageMissingError where there are none."""
    return Listing(url, tuple(storage.list_files(url)))


def scan(
    listing: Listing, test_listing: Listing | None, input_format: str, image_size: int | None, scratch: str
) -> Scan:
    """Understand an input; runs as one task, which also unpacks archives to `scratch`.

    Raises
    ------
    InputError
        When it holds no images, one class only, or a format other than the named one.
    """
    entries = list_entries(listing.url, listing.files, storage.join(scratch, "0"))
    tests = list_entries(test_listing.url, test_listing.files, storage.join(scratch, "1")) if test_listing else []
    found = input_format if input_format != "auto" else _detected([*entries, *tests], listing.url)
    finder = {"folder": _find_pictures, "cifar10": _find_cifar10, "idx": _find_idx}.get(found)
    if finder is None:
        raise InputError(f"{listing.url}: input.format {found!r} holds no images; use auto, folder, cifar10 or idx")
    return finder(listing.url, entries, tests, image_size)


def decode(scan: Scan, index: int) -> Decoded:
    """Decode the part `index`; runs as a task."""
    part = scan.parts[index]
    if scan.format == "folder":
        return _decode_pictures(scan, part)
    if scan.format == "idx":
        images, labels = _read_idx_pair(part.entries)
    else:
        images, labels = _read_cifar10(part.entries[0])
        if labels.max() >= len(scan.classes):
            raise InputError(
                f"{part.entries[0].place}: label {labels.max()}, but batches.meta names {len(scan.classes)} classes; "
                "put CIFAR-10's own files there"
            )
    if images.shape[1:] != scan.shape:
        if not scan.is_resized:
            raise _other_shape(part.entries[0].place, images.shape[1:], scan)
        images = np.stack([resized(image, scan.shape[:2]) for image in images])
    return Decoded(images, labels, part.first + np.arange(len(labels)), ())


def _detected(entries: Sequence[Entry], url: str) -> str:
    for name in (_file_name(entry) for entry in entries):
        if _is_cifar10(name):
            return "cifar10"
        if _is_idx_images(name):
            return "idx"
    if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries):
        return "folder"
    raise InputError(
        f"{url}: no images among {len(entries)} files; wanted {', '.join(IMAGE_SUFFIXES[:3])} … in a folder per class, "
        "CIFAR-10's batches or IDX files"
    )


# --- folders of pictures --------------------------------------------------------------------------------------------


def _find_pictures(url: str, entries: list[Entry], tests: list[Entry], image_size: int | None) -> Scan:
    by_split: dict[str, list[tuple[str, Entry]]] = {"train": [], "test": []}
    for own, several in (("train", entries), ("test", tests)):
        for entry in several:
            folders = entry.name.split("/")[:-1]
            if entry.name.lower().endswith(IMAGE_SUFFIXES):
                if not folders:
                    raise InputError(f"{entry.place}: lies in no class's folder; put it into <class>/")
                above = folders[-2].lower() if len(folders) > 1 else ""
                by_split[above if above in _SPLITS and own == "train" else own].append((folders[-1], entry))
    if not by_split["train"]:
        raise InputError(f"{url}: no training images; put them into <class>/ or train/<class>/")
    classes = _checked_classes(url, sorted({name for name, _ in by_split["train"]}))
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = sorted({name for name, _ in by_split["test"]} - number_of.keys())
    if unknown:
        raise InputError(f"{url}: the test set has a class {unknown[0]!r} that the training set lacks; remove it")
    shape = _probed([entry for _, entry in by_split["train"]], url)
    height, width = (image_size, image_size) if image_size is not None else shape[:2]
    per_part = max(min(room() // (_IMAGE_COPIES * height * width * shape[2]), _IMAGES_PER_PART), 1)
    parts = []
    for split, pictures in by_split.items():
        for first in range(0, len(pictures), per_part):
            several_pictures = pictures[first : first + per_part]
            labels = tuple(number_of[name] for name, _ in several_pictures)
            parts.append(Part(split, first, tuple(entry for _, entry in several_pictures), labels))
    n_ignored = len(entries) + len(tests) - sum(map(len, by_split.values()))
    return _scan(url, "folder", classes, shape, image_size, parts, n_ignored)


def _probed(entries: list[Entry], url: str) -> Shape:
    """Return the shape of the first image that opens; it is grey only if all the images looked at are."""
    shapes = []
    chosen = entries[:: max(1, len(entries) // _N_PROBED)]
    for _, data in read_entries(chosen):
        try:
            shapes.append(picture_shape(data))
        except UndecodableImageError:
            continue
    if not shapes:
        raise InputError(f"{url}: none of {len(chosen)} images looked at can be opened; put whole image files there")
    return shapes[0][0], shapes[0][1], max(channels for _, _, channels in shapes)


def _decode_pictures(scan: Scan, part: Part) -> Decoded:
    images: list[Images] = []
    kept: list[int] = []
    bad: list[str] = []
    for i, (entry, data) in enumerate(read_entries(part.entries)):
        try:
            image = decode_picture(data, scan.shape[2], entry.place)
        except UndecodableImageError:
            bad.append(entry.name)
            continue
        if image.shape != scan.shape and not scan.is_resized:
            raise _other_shape(entry.name, image.shape, scan)
        images.append(resized(image, scan.shape[:2]))
        kept.append(i)
    stacked = np.stack(images) if images else np.empty((0, *scan.shape), np.uint8)
    labels = np.array([part.labels[i] for i in kept], np.int64)
    return Decoded(stacked, labels, part.first + np.array(kept, np.int64), tuple(bad))


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------


def _is_cifar10(name: str) -> bool:
    return name.removesuffix(".bin") in {"test_batch", *(f"data_batch_{i}" for i in range(1, 6))}


def _find_cifar10(url: str, entries: list[Entry], tests: list[Entry], image_size: int | None) -> Scan:
    batches = [
        ("test" if _file_name(e).startswith("test") else "train", e) for e in entries if _is_cifar10(_file_name(e))
    ]
    batches += [("test", e) for e in tests if _is_cifar10(_file_name(e))]
    if not any(split == "train" for split, _ in batches):
        raise InputError(f"{url}: no data_batch_1 … data_batch_5 of CIFAR-10 there; put its official archive there")
    names = list(_CIFAR10_NAMES)
    for entry, data in read_entries([e for e in entries if _file_name(e) in ("batches.meta", "batches.meta.txt")]):
        names = read_cifar10_names(data, entry.name, entry.place)
    # A batch's number of images is known once it is read; 10,000 in the official ones.
    parts = [Part(split, 10_000 * number, (entry,)) for number, (split, entry) in enumerate(batches)]
    n_ignored = len(entries) + len(tests) - len(batches)
    return _scan(url, "cifar10", _checked_classes(url, names), (32, 32, 3), image_size, parts, n_ignored)


def _read_cifar10(entry: Entry) -> tuple[Images, NDArray[np.int64]]:
    refuse_beyond_room(entry.place, _BATCH_COPIES * entry.size, "a batch", "put CIFAR-10's own file there")
    data = _content(entry)
    read = read_cifar10_binary if entry.name.endswith(".bin") else read_cifar10_python
    return read(data, entry.place)


# --- IDX ------------------------------------------------------------------------------------------------------------


def _is_idx_images(name: str) -> bool:
    return "images" in name and "idx3" in name


def _find_idx(url: str, entries: list[Entry], tests: list[Entry], image_size: int | None) -> Scan:
    parts: list[Part] = []
    by_place = {(e.name, e.url if not e.member else ""): e for e in [*entries, *tests]}
    labels_of = {e.name: e for e in by_place.values()}
    for own, several in (("train", entries), ("test", tests)):
        for images in several:
            name = _file_name(images)
            if not _is_idx_images(name):
                continue
            wanted = images.name.replace("images", "labels").replace("idx3", "idx1")
            labels = labels_of.get(wanted) or labels_of.get(wanted + ".gz") or labels_of.get(wanted.removesuffix(".gz"))
            if labels is None:
                raise InputError(f"{images.place}: no {wanted.rsplit('/', 1)[-1]} beside it; put it there")
            split = "test" if name.startswith("t10k") or "test" in name else own
            parts.append(Part(split, sum(p.split == split for p in parts) << 32, (images, labels)))
    if not any(part.split == "train" for part in parts):
        raise InputError(f"{url}: no IDX file of training images, such as train-images-idx3-ubyte.gz; put it there")
    n_classes = 0
    for part in sorted(parts, key=lambda part: part.split, reverse=True):  # train before test
        labels_read = read_idx(_content(part.entries[1]), part.entries[1].place, 1)
        if not len(labels_read):
            raise InputError(f"{part.entries[1].place}: no labels in it; put the whole file there")
        if part.split == "train":
            n_classes = max(n_classes, int(labels_read.max()) + 1)
        elif labels_read.max() >= n_classes:
            raise InputError(f"{part.entries[1].place}: label {labels_read.max()} is not in the training set")
    first = next(part.entries[0] for part in parts if part.split == "train")
    _, height, width = idx_shape(_content(first), first.place, 3)
    classes = _checked_classes(url, [str(i) for i in range(n_classes)])
    return _scan(url, "idx", classes, (height, width, 1), image_size, parts, len(by_place) - 2 * len(parts))


def _read_idx_pair(entries: Sequence[Entry]) -> tuple[Images, NDArray[np.int64]]:
    images = read_idx(_content(entries[0]), entries[0].place, 3)[..., None]
    labels = read_idx(_content(entries[1]), entries[1].place, 1).astype(np.int64)
    if len(images) != len(labels):
        raise InputError(f"{entries[1].place}: {len(labels)} labels for {len(images)} images; put the right file there")
    return images, labels


# --- what all formats share -----------------------------------------------------------------------------------------


def _scan(
    url: str,
    found: str,
    classes: tuple[str, ...],
    shape: Shape,
    image_size: int | None,
    parts: Iterable[Part],
    n_ignored: int,
) -> Scan:
    if image_size is not None:
        shape = (image_size, image_size, shape[2])
    if min(shape[:2]) < _SMALLEST:
        raise InputError(
            f"{url}: images of {shape[0]} x {shape[1]} pixels are too small; "
            f"set params.image_size to {_SMALLEST} or more"
        )
    return Scan(url, found, classes, shape, image_size is not None, tuple(parts), n_ignored)


def _checked_classes(url: str, classes: Sequence[str]) -> tuple[str, ...]:
    if len(classes) < 2:
        found = f"one class only ({classes[0]!r})" if classes else "no class has a name"
        raise InputError(f"{url}: {found}; put images of at least two classes there")
    return tuple(classes)


def _other_shape(place: str, shape: tuple[int, ...], scan: Scan) -> InputError:
    return InputError(
        f"{place}: {shape[0]} x {shape[1]} pixels among images of {scan.shape[0]} x {scan.shape[1]}; "
        "set params.image_size to bring all to one size"
    )


def _file_name(entry: Entry) -> str:
    return entry.name.rsplit("/", 1)[-1].lower()


def _content(entry: Entry) -> bytes:
    return next(read_entries([entry]))[1]
