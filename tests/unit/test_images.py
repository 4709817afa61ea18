"""Readers of labelled images: every format from small files, every damage by its name."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.errors import InputError, StorageMissingError
from jobs.readers.image_formats import (
    UndecodableImageError,
    decode_picture,
    picture_shape,
    read_cifar10_python,
    read_idx,
)
from jobs.readers.images import Decoded, Scan, decode, list_input, scan

RNG = np.random.default_rng(0)
CLASSES = ("ape", "bee", "cat")

Pixels = NDArray[np.uint8]


def picture(pixels: Pixels, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def random_pixels(*shape: int) -> Pixels:
    return RNG.integers(256, size=shape, dtype=np.uint8)


def class_folders(n_per_class: int = 4, prefix: str = "") -> dict[str, bytes]:
    """PNG files by name, as bytes: `prefix`<class>/<number>.png, 9 x 8 pixels."""
    return {f"{prefix}{name}/{i}.png": picture(random_pixels(9, 8, 3)) for name in CLASSES for i in range(n_per_class)}


def put(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def tarred(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def read(
    url: str, scratch: Path, kind: str = "auto", size: int | None = None, test_url: str | None = None
) -> tuple[Scan, list[Decoded]]:
    found = scan(list_input(url), list_input(test_url) if test_url else None, kind, size, str(scratch / "scratch"))
    return found, [decode(found, i) for i in range(len(found.parts))]


def idx(values: Pixels) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def idx_files(suffix: str = "", pack: Callable[[bytes], bytes] = bytes) -> dict[str, bytes]:
    files = {}
    for split, n in (("train", 12), ("t10k", 5)):
        files[f"{split}-images-idx3-ubyte{suffix}"] = pack(idx(random_pixels(n, 28, 28)))
        files[f"{split}-labels-idx1-ubyte{suffix}"] = pack(idx((np.arange(n) % 3).astype(np.uint8)))
    return files


def cifar10_binary(n: int = 10) -> tuple[dict[str, bytes], Pixels]:
    pixels = random_pixels(n, 32, 32, 3)
    rows = b"".join(bytes([i % 10]) + image.transpose(2, 0, 1).tobytes() for i, image in enumerate(pixels))
    names = "\n".join(f"class{i}" for i in range(10)).encode()
    root = "cifar-10-batches-bin/"
    return {f"{root}data_batch_1.bin": rows, f"{root}test_batch.bin": rows, f"{root}batches.meta.txt": names}, pixels


def cifar10_python(n: int = 10) -> tuple[dict[str, bytes], Pixels]:
    pixels = random_pixels(n, 32, 32, 3)
    flat = pixels.transpose(0, 3, 1, 2).reshape(n, -1)
    batch = pickle.dumps({b"data": flat, b"labels": [i % 10 for i in range(n)]}, protocol=2)
    names = pickle.dumps({b"label_names": [f"class{i}".encode() for i in range(10)]}, protocol=2)
    root = "cifar-10-batches-py/"
    return {f"{root}data_batch_1": batch, f"{root}test_batch": batch, f"{root}batches.meta": names}, pixels


def test_class_folders_are_read_pixel_by_pixel(tmp_path: Path) -> None:
    files = class_folders()
    found, [part] = read(put(tmp_path / "data", files), tmp_path)
    assert (found.format, found.classes, found.shape, found.has_test_set) == ("folder", CLASSES, (9, 8, 3), False)
    expected = [np.asarray(Image.open(io.BytesIO(files[name]))) for name in sorted(files)]
    np.testing.assert_array_equal(part.images, np.stack(expected))
    assert part.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert part.numbers.tolist() == list(range(12))


def test_names_are_relative_to_the_input_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "_own/.cache/data", class_folders(2, "train/") | class_folders(1, "test/"))
    monkeypatch.chdir(tmp_path / "_own")
    for url in (".cache/data", f"file://{tmp_path}/_own/.cache/data/", f"{tmp_path}/_own/.cache/data/t*/*/*.png"):
        found, parts = read(url, tmp_path)
        assert (found.classes, [len(part.labels) for part in parts]) == (CLASSES, [6, 3])


def test_train_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    files = class_folders(3, "train/") | class_folders(2, "test/")
    found, parts = read(put(tmp_path / "data", files), tmp_path)
    assert [(part.split, len(d.labels)) for part, d in zip(found.parts, parts, strict=True)] == [
        ("train", 9),
        ("test", 6),
    ]


def test_a_test_url_is_the_test_set(tmp_path: Path) -> None:
    train, test = put(tmp_path / "a", class_folders(3)), put(tmp_path / "b", class_folders(1))
    found, parts = read(train, tmp_path, test_url=test)
    assert [(part.split, len(d.labels)) for part, d in zip(found.parts, parts, strict=True)] == [
        ("train", 9),
        ("test", 3),
    ]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2", "tgz", "zip"])
def test_archives_hold_what_folders_hold(tmp_path: Path, suffix: str) -> None:
    files = (
        class_folders(3, "pets/train/")
        | class_folders(2, "pets/test/")
        | {"pets/train/.hidden/x.png": b"?", "pets/README": b"!"}
    )
    mode = {"gz": "w:gz", "xz": "w:xz", "z2": "w:bz2", "ar": "w", "ip": ""}[suffix[-2:]]
    data = zipped(files) if suffix == "zip" else tarred(files, "w:gz" if suffix == "tgz" else mode)
    plain, plain_parts = read(put(tmp_path / "plain", files), tmp_path / "s1")
    packed, packed_parts = read(put(tmp_path / "packed", {f"pets.{suffix}": data}), tmp_path / "s2")
    assert (packed.classes, packed.shape, packed.n_ignored) == (plain.classes, plain.shape, plain.n_ignored)
    for a, b in zip(plain_parts, packed_parts, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("make", [cifar10_binary, cifar10_python])
@pytest.mark.parametrize("is_packed", [False, True])
def test_official_cifar10_is_read_in_both_versions(
    tmp_path: Path, make: Callable[[], tuple[dict[str, bytes], Pixels]], is_packed: bool
) -> None:
    files, pixels = make()
    url = put(tmp_path / "data", {"cifar.tar.gz": tarred(files, "w:gz")} if is_packed else files)
    found, parts = read(url, tmp_path)
    assert (found.format, found.shape, found.classes[3]) == ("cifar10", (32, 32, 3), "class3")
    assert [part.split for part in found.parts] == ["train", "test"]
    for part in parts:
        np.testing.assert_array_equal(part.images, pixels)
        assert part.labels.tolist() == list(range(10))


@pytest.mark.parametrize("make", [cifar10_binary, cifar10_python])
@pytest.mark.parametrize(("names", "message"), [([], "no class has a name"), (["a", "b"], "label 9, but .* names 2")])
def test_labels_without_a_name_are_refused(
    tmp_path: Path, make: Callable[[], tuple[dict[str, bytes], Pixels]], names: list[str], message: str
) -> None:
    files = make()[0]
    (meta,) = [name for name in files if "meta" in name]
    files[meta] = "\n".join(names).encode() if meta.endswith(".txt") else pickle.dumps({b"label_names": names})
    with pytest.raises(InputError, match=message):
        read(put(tmp_path / "data", files), tmp_path)


@pytest.mark.parametrize("archive", ["cifar.tar", "cifar.tar.gz", "cifar.zip", "a folder"])
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_damaged_member_is_named_as_users_know_it(tmp_path: Path, archive: str, name: str) -> None:
    files = cifar10_python()[0] | {f"cifar-10-batches-py/{name}": b"damaged"}
    packed = zipped(files) if archive.endswith(".zip") else tarred(files, "w:gz" if archive.endswith("gz") else "w")
    with pytest.raises(InputError) as refused:
        read(put(tmp_path / "data", files if archive == "a folder" else {archive: packed}), tmp_path)
    folder = tmp_path / "data" if archive == "a folder" else f"{tmp_path}/data/{archive}!cifar-10-batches-py"
    separator = "/cifar-10-batches-py/" if archive == "a folder" else "/"
    assert f"{folder}{separator}{name}: not a pickle" in str(refused.value)
    assert "scratch" not in str(refused.value)


def test_pickles_that_ask_for_code_are_refused() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    with pytest.raises(InputError, match=r"x: not a pickle of CIFAR-10 \(it asks for builtins\.print\)"):
        read_cifar10_python(pickle.dumps({b"data": Evil()}), "x")


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress)])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    found, parts = read(put(tmp_path / "data", idx_files(suffix, pack)), tmp_path)
    assert (found.format, found.shape, found.classes) == ("idx", (28, 28, 1), ("0", "1", "2"))
    by_split = {part.split: d for part, d in zip(found.parts, parts, strict=True)}
    assert by_split["train"].images.shape == (12, 28, 28, 1)
    assert by_split["test"].labels.tolist() == [0, 1, 2, 0, 1]


def test_images_of_several_sizes_are_resized_where_a_size_is_given(tmp_path: Path) -> None:
    files = class_folders() | {"ape/large.png": picture(random_pixels(40, 30, 3))}
    _, [part] = read(put(tmp_path / "data", files), tmp_path, size=16)
    assert part.images.shape == (13, 16, 16, 3)


def test_images_of_several_sizes_are_an_error_that_names_one(tmp_path: Path) -> None:
    files = class_folders() | {"bee/large.png": picture(random_pixels(40, 30, 3))}
    with pytest.raises(
        InputError, match=r"bee/large\.png: 40 x 30 pixels among images of 9 x 8; set params\.image_size"
    ):
        read(put(tmp_path / "data", files), tmp_path)


def test_images_that_do_not_decode_are_counted_and_left_out(tmp_path: Path) -> None:
    files = class_folders()
    files["bee/1.png"] = files["bee/1.png"][:40]
    files["cat/0.png"] = b"no image"
    _, [part] = read(put(tmp_path / "data", files), tmp_path)
    assert part.bad == ("bee/1.png", "cat/0.png")
    assert part.numbers.tolist() == [0, 1, 2, 3, 4, 6, 7, 9, 10, 11]
    assert part.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3


def test_grey_pictures_have_one_channel_and_16_bits_are_scaled() -> None:
    grey = random_pixels(8, 8)
    assert picture_shape(picture(grey)) == (8, 8, 1)
    np.testing.assert_array_equal(decode_picture(picture(grey), 1)[:, :, 0], grey)
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_picture(picture(deep), 1)[:, :, 0], grey)  # type: ignore[arg-type]


def test_transparent_and_palette_pictures_become_rgb() -> None:
    rgba = np.dstack([np.full((8, 8, 3), 7, np.uint8), np.full((8, 8), 255, np.uint8)])
    np.testing.assert_array_equal(decode_picture(picture(rgba), 3), rgba[:, :, :3])


@pytest.mark.parametrize("keep", [0, 8, 30])
def test_a_truncated_picture_does_not_decode(keep: int) -> None:
    with pytest.raises(UndecodableImageError):
        decode_picture(picture(random_pixels(16, 16, 3))[:keep], 3)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "tar.bz2", "tar", "zip"])
def test_truncated_archives_are_an_error(tmp_path: Path, suffix: str) -> None:
    files = class_folders(20)
    mode = {"gz": "w:gz", "xz": "w:xz", "z2": "w:bz2", "ar": "w", "ip": ""}[suffix[-2:]]
    data = zipped(files) if suffix == "zip" else tarred(files, mode)
    url = put(tmp_path / "data", {f"x.{suffix}": data[: len(data) * 2 // 3]})
    with pytest.raises(InputError, match=rf"x\.{suffix}: truncated or damaged archive .*; put it there again"):
        read(url, tmp_path)


def test_an_archive_cut_by_its_last_bytes_is_an_error(tmp_path: Path) -> None:
    data = tarred(class_folders(), "w:xz")
    with pytest.raises(InputError, match="truncated or damaged archive"):
        read(put(tmp_path / "data", {"x.tar.xz": data[:-8]}), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/readme.txt": b"x"}, "no images among 1 files"),
        ({"ape/0.png": picture(random_pixels(9, 8, 3))}, "one class only \\('ape'\\)"),
        ({"0.png": picture(random_pixels(9, 8, 3))}, "lies in no class's folder"),
        ({"test/a/0.png": b"", "test/b/0.png": b""}, "no training images"),
        ({"a/0.png": b"x", "b/0.png": b"y"}, "none of 2 images looked at can be opened"),
        (
            {"a/0.png": picture(random_pixels(4, 4)), "b/0.png": picture(random_pixels(4, 4))},
            "4 x 4 pixels are too small",
        ),
        (class_folders(1, "train/") | {"test/dog/0.png": b""}, "the test set has a class 'dog'"),
        ({"cifar-10-batches-bin/data_batch_1.bin": b"\0" * 5000}, "5000 bytes are not a whole number"),
        ({"cifar-10-batches-bin/data_batch_1.bin": b""}, "0 bytes are not a whole number"),
        ({"cifar-10-batches-bin/data_batch_1.bin": b"\x0b" * 3073}, "are not CIFAR-10's"),
        ({"cifar-10-batches-py/data_batch_1": b"\x80\x04garbage"}, "not a pickle of CIFAR-10"),
        ({"cifar-10-batches-py/data_batch_1": pickle.dumps({b"x": 1})}, "not a batch of CIFAR-10"),
        ({"cifar-10-batches-bin/test_batch.bin": b"\0" * 3073}, "no data_batch_1"),
        ({"train-images-idx3-ubyte": idx(random_pixels(3, 9, 9))}, "no train-labels-idx1-ubyte beside it"),
        ({k: v for k, v in idx_files().items() if "t10k" in k}, "no IDX file of training images"),
        (
            {"train-images-idx3-ubyte": idx(random_pixels(3, 9, 9)), "train-labels-idx1-ubyte": idx(random_pixels(2))},
            "2 labels for 3 images",
        ),
        (
            {
                "train-images-idx3-ubyte": idx(random_pixels(3, 9, 9)),
                "train-labels-idx1-ubyte": idx(np.zeros(3, np.uint8)),
            },
            "one class only",
        ),
    ],
)
def test_bad_inputs_are_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(put(tmp_path / "data", files), tmp_path)


def test_an_empty_folder_is_missing_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageMissingError, match="empty"):
        list_input(str(tmp_path / "empty"))


def test_a_format_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"input\.format 'csv' holds no images"):
        read(put(tmp_path / "data", class_folders()), tmp_path, kind="csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with , an IDX file"),
        (b"\x89PNG\r\n", "starts with 89 50 4e 47"),
        (idx(random_pixels(3, 9, 9))[:-1], "242 bytes of values, its header promises 243"),
        (idx(random_pixels(3, 9)), "starts with 00 00 08 02"),
        (gzip.compress(idx(random_pixels(3, 9, 9)))[:-20], "truncated or damaged gzip"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
    ],
)
def test_damaged_idx_files_are_named(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^here: .*{message}"):
        read_idx(data, "here", 3)


def test_the_fingerprint_changes_with_the_content(tmp_path: Path) -> None:
    url = put(tmp_path / "data", class_folders())
    before = list_input(url).fingerprint
    assert list_input(url).fingerprint == before
    put(tmp_path / "data", {"ape/0.png": picture(random_pixels(9, 8, 3)) + b"more"})
    assert list_input(url).fingerprint != before
