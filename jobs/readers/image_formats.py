"""Bytes to images: picture files, CIFAR-10's batches (binary, python), IDX. Called by `jobs.readers.images`."""

from __future__ import annotations

import gzip
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import TiffImagePlugin as TIFF

from jobs.errors import InputError
from jobs.readers import plain_pickle
from jobs.readers.room import refuse_beyond_room

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
CIFAR10_ROW = 1 + 32 * 32 * 3
# Pillow knows many more formats, some of which start programs; what a file is has nothing to do with its name.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Pillow's own limit is the same on every machine; ours follows the worker's memory, see `_refuse_large`.
Image.MAX_IMAGE_PIXELS = None
# While one is decoded: Pillow's pixels twice and a JPEG's coefficients, then bytes, then an array.
_BYTES_PER_PIXEL, _MOST_BYTES_PER_PIXEL = {"1": 4, "L": 6, "P": 12, "RGB": 20}, 28
# An image is there as it was read, and as what is chosen from it or resized.
_IDX_COPIES = 3
_PUT_AGAIN = "put the right file there"
# What Pillow raises on files that are no images, or broken ones.
_UNDECODABLE = (OSError, ValueError, SyntaxError, struct.error, zlib.error, EOFError, Image.DecompressionBombError)
_GREY_MODES = {"1", "L", "LA", "I", "I;16", "F"}
_IDX_UINT8 = 0x08


class UndecodableImageError(Exception):
    """A picture file that does not decode."""


def picture_shape(data: bytes) -> tuple[int, int, int]:
    """Return (height, width, channels) of a picture file; channels is 1 where it is grey, else 3."""
    with _opened(data) as picture:
        return picture.height, picture.width, 1 if picture.mode in _GREY_MODES else 3


def decode_picture(data: bytes, n_channels: int, place: str = "picture") -> Images:
    """Return a picture file as (height, width, channels).

    Raises
    ------
    UndecodableImageError
        When it is none, or damaged.
    InputError
        When it is larger than a task's memory holds.
    """
    with _opened(data) as picture:
        _refuse_large(picture, place)
        try:
            pixels = np.asarray(_eight_bits(picture).convert("L" if n_channels == 1 else "RGB"), np.uint8)
        except _UNDECODABLE as error:
            raise UndecodableImageError(str(error)) from error
    return pixels.reshape(picture.height, picture.width, n_channels)


def resized(image: Images, size: tuple[int, int]) -> Images:
    """Return an image (height, width, channels) resized to `size` by bilinear interpolation."""
    if image.shape[:2] == size:
        return image
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR), np.uint8).reshape(*size, -1)


def read_cifar10_binary(data: bytes, place: str) -> tuple[Images, Labels]:
    """Read a batch of the binary version: rows of one label and 3 x 32 x 32 pixels."""
    if not data or len(data) % CIFAR10_ROW:
        raise InputError(
            f"{place}: {len(data)} bytes are not a whole number of CIFAR-10's rows of {CIFAR10_ROW}; "
            "it is truncated or something else: put it there again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, CIFAR10_ROW)
    return _cifar10(rows[:, 1:], rows[:, 0], place)


def read_cifar10_python(data: bytes, place: str) -> tuple[Images, Labels]:
    """Read a batch of the python version, a pickle, of which nothing is called."""
    batch = _plain_pickle(data, place)
    for key in (b"data", b"labels"):
        if key not in batch:
            raise InputError(f"{place}: not a batch of CIFAR-10 (no {key.decode()}); put it there again")
    pixels, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise InputError(f"{place}: not a batch of CIFAR-10 (data is no array of bytes); put it there again")
    if isinstance(labels, list) and all(type(label) is int and 0 <= label < 256 for label in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{place}: not a batch of CIFAR-10 (labels are no small whole numbers); put it there again")
    return _cifar10(pixels, labels, place)


def read_cifar10_names(data: bytes, name: str, place: str) -> list[str]:
    """Read the class names from batches.meta (python) or batches.meta.txt (binary)."""
    if name.endswith(".txt"):
        return data.decode("utf-8", "replace").split()
    names = _plain_pickle(data, place).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise InputError(f"{place}: no class names in it; put CIFAR-10's own file there")
    # A text, too, may hold what no file can: half of a pair of surrogates.
    return [(name if isinstance(name, bytes) else _encoded(name)).decode("utf-8", "replace") for name in names]


def read_idx(data: bytes, place: str, n_dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, perhaps gzipped: magic 0 0 type n, n sizes, the values.

    Raises
    ------
    InputError
        On a wrong magic, type or number of dimensions, when it is truncated or longer than it promises, and when it
        promises more than a task's memory holds.
    """
    with _plain_idx(data, place) as file:
        shape = _idx_shape(file, place, n_dimensions)
        promised = math.prod(shape)
        refuse_beyond_room(place, _IDX_COPIES * promised, f"what its header promises ({promised:,} bytes)", _PUT_AGAIN)
        values = file.read(promised + 1)  # a byte more: to see the end is to check the sum that gzip writes there
        if len(values) != promised:
            found = f"{len(values):,}" if len(values) < promised else "more"
            raise InputError(
                f"{place}: {found} bytes of values, its header promises {promised:,}; "
                "it is truncated or damaged: put it there again"
            )
        return np.frombuffer(values, np.uint8).reshape(shape)


def idx_shape(data: bytes, place: str, n_dimensions: int) -> tuple[int, ...]:
    """Return the shape that an IDX file's header promises; raises InputError as `read_idx` does."""
    with _plain_idx(data, place) as file:
        return _idx_shape(file, place, n_dimensions)


@contextmanager
def _plain_idx(data: bytes, place: str) -> Iterator[Any]:
    file: Any = io.BytesIO(data)
    try:
        yield gzip.GzipFile(fileobj=file) if data[:2] == b"\x1f\x8b" else file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{place}: truncated or damaged gzip file ({error}); put it there again") from error


def _idx_shape(file: Any, place: str, n_dimensions: int) -> tuple[int, ...]:
    expected = bytes([0, 0, _IDX_UINT8, n_dimensions])
    magic = file.read(4)
    if magic != expected:
        raise InputError(
            f"{place}: starts with {magic.hex(' ')}, an IDX file of bytes with {n_dimensions} dimension(s) "
            f"with {expected.hex(' ')}; put the right file there"
        )
    sizes = file.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise InputError(f"{place}: it ends within its header; put it there again")
    return struct.unpack(f">{n_dimensions}I", sizes)


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which we don't read
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except _UNDECODABLE as error:
        raise UndecodableImageError(str(error)) from error


def _refuse_large(picture: Image.Image, place: str) -> None:
    """Refuse a picture whose header promises more pixels, or larger tiles, than can be held."""
    width, height = picture.size
    # Tiles of a TIFF are unpacked whole, however little of one the picture shows.
    tags = getattr(picture, "tag_v2", {})
    tile = [int(tags.get(tag) or 0) for tag in (TIFF.TILEWIDTH, TIFF.TILELENGTH)]
    n_pixels = max(width * height, math.prod(tile))
    n_bytes = n_pixels * _BYTES_PER_PIXEL.get(picture.mode, _MOST_BYTES_PER_PIXEL)
    refuse_beyond_room(place, n_bytes, f"a picture of {width:,} x {height:,} pixels", "scale it down")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey down: convert() would clip it."""
    if picture.mode in ("I", "I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return picture


def _cifar10(pixels: NDArray[np.uint8], labels: NDArray[Any], place: str) -> tuple[Images, Labels]:
    if pixels.shape != (len(labels), CIFAR10_ROW - 1) or not len(labels) or labels.max() > 9 or labels.min() < 0:
        raise InputError(
            f"{place}: pixels {pixels.shape} and {len(labels)} labels are not CIFAR-10's; put its own file there"
        )
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _plain_pickle(data: bytes, place: str) -> Mapping[Any, Any]:
    """Return the dictionary that a file of the python version is; its keys are bytes, as Python 2 wrote them."""
    try:
        content = plain_pickle.load(data)
    except plain_pickle.PlainPickleError as error:
        raise InputError(f"{place}: not a pickle of CIFAR-10 ({error}); put its own file there") from error
    if not isinstance(content, dict):
        raise InputError(f"{place}: not a pickle of CIFAR-10 (no dictionary); put its own file there")
    return {_encoded(key) if isinstance(key, str) else key: value for key, value in content.items()}


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
