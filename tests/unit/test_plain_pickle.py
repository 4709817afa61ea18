"""Pickles are read as the data that they are: whatever they ask for, nothing is called."""

from __future__ import annotations

import pickle
import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.errors import InputError
from jobs.readers.image_formats import read_cifar10_names, read_cifar10_python
from jobs.readers.plain_pickle import PlainPickleError, load

PIXELS = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)


def python2_batch(protocol: int, pixels: bytes = PIXELS.tobytes(), n: int = 2) -> bytes:
    """A batch as Python 2 and the NumPy of its day wrote it: the official files are of protocol 2."""
    if protocol == 0:
        raw = repr(pixels)[1:].encode()
        return (
            b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\n"
            b"tp6\nRp7\n(I1\n(I%d\nI3072\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNN"
            b"I-1\nI-1\nI0\ntp14\nbI00\nS%b\np15\ntp16\nbsS'labels'\np17\n(lp18\nI1\naI2\nas." % (n, raw)
        )
    return (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K%cM\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89T%b%btbU\x06labelsq\x08]q\x09(K\x01K\x02eu."
        % (n, struct.pack("<I", len(pixels)), pixels)
    )


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_writes_is_read_in_every_protocol(protocol: int) -> None:
    arrays = [PIXELS, np.asfortranarray(PIXELS), PIXELS[:, ::3], PIXELS[:0], np.arange(3), np.arange(3, dtype=">f4")]
    for array in arrays:
        written = {
            b"data": array,
            "labels": [0, 255, 256, -1, 70_000, 2**40, -(2**40)],
            "5": {"text": "ü\n\\", "bytes": [b"", b"'\"\n\0\xff", b"x" * 300], "tuples": ((), (1,), (1, 2), (1, 2, 3))},
            "others": [None, True, False, 1.5, "x" * 70_000, (1, 2, 3, 4)],
        }
        read = load(pickle.dumps(written, protocol))
        assert np.array_equal(read.pop(b"data"), array)
        del written[b"data"]
        assert read == written


@pytest.mark.parametrize("protocol", [0, 2])
def test_batches_of_python_2_are_read(protocol: int) -> None:
    data = python2_batch(protocol)
    assert np.array_equal(pickle.loads(data, encoding="bytes")[b"data"], PIXELS)  # it is what it is meant to be
    images, labels = read_cifar10_python(data, "x")
    assert np.array_equal(images, PIXELS.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels.tolist() == [1, 2]


def test_a_file_of_the_size_of_cifar100_is_read() -> None:
    n = 50_000
    written = {
        b"data": np.zeros((n, 3), np.uint8),
        b"filenames": [f"image_{i:05d}.png".encode() for i in range(n)],
        b"fine_labels": [i % 100 for i in range(n)],
        b"coarse_labels": [i % 20 for i in range(n)],
    }
    read = load(pickle.dumps(written, 2))
    assert read[b"filenames"] == written[b"filenames"]
    assert read[b"coarse_labels"] == written[b"coarse_labels"]


def test_class_names_are_text_or_bytes() -> None:
    for names in ([b"cat", b"dog"], ["cat", "dog"]):
        for protocol in range(6):
            assert read_cifar10_names(pickle.dumps({b"label_names": names}, protocol), "meta", "x") == ["cat", "dog"]


def called(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


GADGETS = {
    "ndarray": called("numpy", "ndarray", b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86U\x02O8t"),
    "objects": called("numpy", "dtype", b"U\x01OK\x00K\x01\x87"),
    "strings": called("numpy", "dtype", b"X\x0a\x00\x00\x00V999999999K\x00K\x01\x87"),
    "reconstruct": called("numpy.core.multiarray", "_reconstruct", b"cbuiltins\nlist\nK\x00\x85U\x01b\x87"),
    "huge": called("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87"),
    "frombuffer": called("numpy.core.numeric", "_frombuffer", b"(U\x01xcnumpy\ndtype\nU\x01O\x85RK\x08\x85U\x01Ct"),
    "codec": called("_codecs", "encode", b"X\x01\x00\x00\x00xX\x03\x00\x00\x00zip\x86"),
    "system": called("os", "system", b"U\x04true\x85"),
    "eval": called("builtins", "eval", b"X\x01\x00\x00\x001\x85"),
    "bytes": called("__builtin__", "bytes", b"J\xff\xff\xff\x7f\x85"),
    "nested name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nU\x04trueo.",
    "newobj": b"\x80\x02cos\nsystem\nU\x04true\x85\x81.",
    "persistent": b"Pname\n.",
    "extension": b"\x82\x01.",
    "buffer": b"\x97.",
    "state of a name": b"cos\nsystem\n}b.",
    "state twice": python2_batch(2)[:-1].replace(b"tbU\x06labels", b"tb)bU\x06labels") + b".",
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_a_pickle_that_asks_for_a_call_is_refused(gadget: str) -> None:
    wrapped = GADGETS[gadget]
    if gadget in ("objects", "strings"):  # a type alone does no harm until an array is made of it
        wrapped = (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85"
            + wrapped[2:-1]
            + b"\x89U\x08\0\0\0\0\0\0\0\0tb."
        )
    with pytest.raises(PlainPickleError):
        load(wrapped)
    with pytest.raises(InputError, match="x: not a pickle of CIFAR-10"):
        read_cifar10_python(wrapped, "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no opcode b''"),
        (b"\x80\x02}", "no opcode b''"),
        (b"\x80\x09N.", "protocol 9"),
        (b"\xee.", "no opcode"),
        (b"T\xff\xff\xff\x7fabc.", "cut short"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "cut short"),
        (b"\x8b\xff\xff\xff\xffabc.", "cut short"),
        (b"I" + b"9" * 5000 + b"\n.", "a number of 5000 digits"),
        (b"L" + b"9" * 5000 + b"L\n.", "a number of 4999 digits|a number of 5000 digits"),
        (b"\x8b\x88\x13\x00\x00" + b"\xff" * 5000 + b".", "a number of 5000 bytes"),
        (b"Ix\n.", "damaged"),
        (b"h\x05.", "damaged"),
        (b"t.", "damaged"),
        (b"R.", "damaged"),
        (b"N(0.", "a mark in the way"),
        (b"}(]Nu.", "a key of type list"),
        (b"}(N)u.", "a key of type NoneType"),
        (b"}N)s.", "a key of type NoneType"),
        (b"}(U\x01au.", "damaged"),
        (b"}(K\x01Nu.", "a key of type int"),
        (b"}G\0\0\0\0\0\0\0\0Ns.", "a key of type float"),
        (b"}\x88Ns.", "a key of type bool"),
        (b"(K\x01Nd.", "a key of type int"),
        (b"Np-1\n.", "a place in the memo that Python would not write"),
        (b"Np2305843009213693951\n.", "a place in the memo that Python would not write"),
        (b"Nr\xff\xff\xff\xff.", "a place in the memo that Python would not write"),
        (b"\x8c\x01a]\x93.", "a name that is no text"),
        (b"]\x8c\x01a\x93.", "a name that is no text"),
        (b"C\x01a\x8c\x01a\x93.", "a name that is no text"),
        (b"c" + b"a" * 199 + b"\nbc\n)R.", "a name of 201 characters"),
        (b"ca\x1b[2J\xc3\xbc\nb\n)R.", r"it asks for a\\x1b\[2J\\xfc\.b"),
        (b"cnumpy\ndtype\n(X\x09\0\0\0V99999999K\0K\1tR.", "a type whose name has 9 characters"),
        (b"NNa.", "NoneType in place of list"),
    ],
)
def test_a_damaged_pickle_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PlainPickleError, match=message):
        load(data)


NUMPY = "cnumpy\ndtype\n(U\x02u1K\0K\1tR(K\3U%c%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb."


@pytest.mark.parametrize("order", ["|", "=", "<", ">"])
def test_a_type_has_one_of_numpy_s_byte_orders(order: str) -> None:
    assert load((NUMPY % (len(order), order)).encode("latin1")).order == order


@pytest.mark.parametrize("order", ["", "3", "O,", "(9,9)", "V9,", "x" * 8, "x" * 99])
def test_what_numpy_would_read_into_a_byte_order_is_refused(order: str) -> None:
    with pytest.raises(PlainPickleError, match=r"another byte order|whose name has 99"):
        load((NUMPY % (len(order), order)).encode("latin1"))


def line(number: int) -> bytes:
    return b"I%d\n" % number


@pytest.mark.parametrize("key", ["numbers of one hash", "distinct texts", "distinct bytes"])
@pytest.mark.parametrize("opcodes", ["SETITEM", "SETITEMS", "DICT"])
def test_no_dictionary_takes_long_to_fill(key: str, opcodes: str) -> None:
    def pair(i: int) -> bytes:
        as_text = {"numbers of one hash": line(i * (2**61 - 1)), "distinct texts": b"V%d\n" % i}
        return as_text.get(key, b"U\x08%08d" % i) + b"N"

    def filled(n: int) -> bytes:
        pairs = [pair(i) for i in range(n)]
        if opcodes == "SETITEM":
            return b"}" + b"".join(each + b"s" for each in pairs) + b"."
        return (
            (b"}(" if opcodes == "SETITEMS" else b"(") + b"".join(pairs) + (b"u." if opcodes == "SETITEMS" else b"d.")
        )

    message = "a key of type int" if key.startswith("numbers") else "a dictionary of more than 1,000 keys"
    with pytest.raises(PlainPickleError, match=message):
        load(filled(1001))
    if not key.startswith("numbers"):
        assert len(load(filled(1000))) == 1000
        again = filled(1000)[:-1] + b"(" + pair(0) * 5000 + b"u."  # keys that are there already are no new ones
        assert len(load(again)) == 1000


def test_the_memo_takes_no_places_of_one_hash() -> None:
    crafted = b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1, 100))
    with pytest.raises(PlainPickleError, match="a place in the memo"):
        load(crafted + b".")


def doubling(levels: int) -> bytes:
    """A list in which each level holds the one before twice: as text it has 2**levels pieces."""
    return b"]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(levels))


DEEP = b"]" * 100_000 + b"a" * 99_999
ENDINGS = {
    "module": b"X\1\0\0\0a\x93.",
    "name": b"q\xf0X\1\0\0\0ah\xf0\x93.",
    "function": b")R.",
    "arguments": b"q\xf0cnumpy\ndtype\nh\xf0R.",
    "argument": b"\x85q\xf0cnumpy\ndtype\nh\xf0R.",
    "text to encode": b"X\6\0\0\0latin1\x86q\xf0c_codecs\nencode\nh\xf0R.",
    "shape to reconstruct": b"q\xf0cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nh\xf0U\1btR.",
    "shape of a buffer": b"q\xf0cnumpy.core.numeric\n_frombuffer\n(U\1xcnumpy\ndtype\n(U\2u1K\0K\1tRh\xf0U\1CtR.",
    "order of a buffer": b"q\xf0cnumpy.core.numeric\n_frombuffer\n(U\1xcnumpy\ndtype\n(U\2u1K\0K\1tRK\1\x85h\xf0tR.",
    "state": b"q\xf0cnumpy\ndtype\n(U\2u1K\0K\1tRh\xf0b.",
    "built": b"Nb.",
    "key": b"q\xf0}h\xf0Ns.",
    "set item": b"NNs.",
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("object", [doubling(60), DEEP], ids=["doubling", "deep"])
def test_no_object_is_looked_into_wherever_it_is_put(object: bytes, ending: str) -> None:
    with pytest.raises(PlainPickleError) as refused:
        load(b"\x80\x02" + object + ENDINGS[ending])
    assert len(str(refused.value)) < 200


def test_the_same_text_is_not_encoded_or_named_again_and_again() -> None:
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
    encode = b"c_codecs\nencode\nq\0" + text + b"X\6\0\0\0latin1\x86q\1"
    assert load(encode + b"R.") == b"a" * 100_000
    with pytest.raises(PlainPickleError, match="it encodes more text than it has"):
        load(encode + b"0" + b"h\0h\1R" * 2 + b".")
    with pytest.raises(PlainPickleError, match=r"a name of 100,001 characters"):
        load(text + b"X\1\0\0\0a" + b"\x93.")


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_what_takes_too_much_all_the_same_is_refused(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("jobs.readers.plain_pickle._Interpreter._none", fail)
    with pytest.raises(PlainPickleError, match=f"more than there is .{error.__name__}"):
        load(b"N.")


def test_halves_of_surrogates_are_no_key_and_no_name() -> None:
    half = b"X\3\0\0\0\xed\xa0\x80"
    with pytest.raises(InputError, match=r"no data"):
        read_cifar10_python(b"}" + half + b"Ns.", "x")
    (name,) = read_cifar10_names(b"}U\x0blabel_names]" + half + b"as.", "meta", "x")
    name.encode()


def test_no_damage_raises_anything_else_or_takes_more_memory_than_the_file() -> None:
    rng = random.Random(7)
    for protocol in range(6):
        whole = pickle.dumps({b"data": PIXELS[:, :40], b"labels": [1, 2], b"x": [b"a", "b", 1.5, (1, 2)]}, protocol)
        for _ in range(600):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            try:
                load(bytes(data[: rng.randint(1, len(data))]))
            except PlainPickleError:
                continue


def test_nested_lists_take_neither_recursion_nor_time() -> None:
    deep = b"]" * 100_000 + b"a" * 99_999 + b"."
    assert isinstance(load(deep), list)
    laughs = b"]q\x000" + b"".join(b"](h%ch%ch%ceq%c0" % (i, i, i, i + 1) for i in range(40)) + b"h\x28"
    batch = b"}(U\x04data" + laughs + b"U\x06labels" + laughs + b"u."
    with pytest.raises(InputError, match="data is no array of bytes"):
        read_cifar10_python(batch, "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "no dictionary"),
        ({b"data": PIXELS}, "no labels"),
        ({b"data": [1], b"labels": [1]}, "data is no array of bytes"),
        ({b"data": PIXELS.astype(np.int64), b"labels": [1, 2]}, "data is no array of bytes"),
        ({b"data": PIXELS, b"labels": [1, 2**70]}, "labels are no small whole numbers"),
        ({b"data": PIXELS, b"labels": [1, 2.0]}, "labels are no small whole numbers"),
        ({b"data": PIXELS, b"labels": [True, False]}, "labels are no small whole numbers"),
        ({b"data": PIXELS, b"labels": [1]}, "are not CIFAR-10's"),
        ({b"data": PIXELS, b"labels": [1, 10]}, "are not CIFAR-10's"),
    ],
)
def test_plain_data_that_is_no_batch_is_refused(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_cifar10_python(pickle.dumps(content, 2), "x")


def test_nothing_in_the_product_unpickles_what_comes_from_outside() -> None:
    """Only the trainer unpickles, what its own processes sent; whoever adds a place says here whose bytes those are."""
    root = Path(__file__).parents[2]
    words = re.compile(
        r"(\b(cloud)?pickle\.loads?\b|Unpickler|allow_pickle|torch\.load\(|joblib|read_pickle|yaml\.\w*load\w*\()"
    )
    files = [file for folder in ("jobs", "controller", "images") for file in (root / folder).rglob("*.py")]
    found = {file.relative_to(root).as_posix() for file in files if words.search(file.read_text())}
    assert found <= {
        "jobs/spec/document.py",  # a safe loader with bounds
        "jobs/training/driver.py",  # results of its own ranks
        "jobs/training/keeper.py",
        "jobs/training/rank.py",  # checkpoints, with weights_only
        "jobs/training/rank_process.py",
    }
