"""image_classification from pictures to a committed model, on worker processes."""

from __future__ import annotations

import io
import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distributed import Client
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix

from jobs import storage
from jobs.errors import InputError, SpecError
from jobs.local_s3 import LocalS3
from jobs.pipelines import image_classification as pipeline
from jobs.readers import images
from jobs.report.sections import Images, Matrix, Table
from jobs.training.convnet import ConvNet, ConvNetConfig, predict
from jobs.training.shards import Shards, damage_of
from tests.s3_proxy import Rule, S3Proxy
from tests.threads import threads

QUICK: dict[str, Any] = {
    "epochs": 8,
    "width": 16,
    "batch_size": 64,
    "micro_batch_size": 32,
    "flip": False,
    "translate": 1,
    "label_smoothing": 0.1,
    "precision": "float32",
    "step_timeout_s": 60.0,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as PNG files in class folders."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for i, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        path = folder / str(label) / f"{i:04d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def small_idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first digits as IDX files with a test set."""
    folder = tmp_path_factory.mktemp("idx")
    data = load_digits()
    pixels, labels = (data.images * 15.9).astype(np.uint8), data.target.astype(np.uint8)
    for name, rows in (("train", slice(0, 300)), ("t10k", slice(300, 400))):
        for what, values in (("images-idx3", pixels[rows]), ("labels-idx1", labels[rows])):
            header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{name}-{what}-ubyte").write_bytes(header + values.tobytes())
    return folder


def stages(job: Any) -> tuple[Any, Any, Any]:
    """Run all stages; return what prepare, fit and evaluate returned."""
    prepared = pipeline.prepare(job, pipeline.load(job))
    model = pipeline.fit(job, prepared)
    evaluation = pipeline.evaluate(job, prepared, model)
    pipeline.write(job, prepared, model, evaluation)
    return prepared, model, evaluation


@pytest.mark.slow
def test_digits_reach_95_percent_and_all_that_is_written_agrees(job_factory: Any, digits: Path) -> None:
    job = job_factory("image_classification", QUICK | {"compare_world_sizes": [1, 2]}, str(digits))
    prepared, _, evaluation = stages(job)
    assert job.n_rows == 1797
    assert evaluation.metrics["accuracy"] >= 0.95
    # Predictions: one row per test image, and the metrics are those of the predictions.
    files = {file.name: file for file in job.attempt.files}
    parts = [pq.read_table(file.url) for name, file in files.items() if name.startswith("predictions/")]
    labels = np.concatenate([part["label"].to_numpy() for part in parts])
    predicted = np.concatenate([part["predicted"].to_numpy() for part in parts])
    assert len(labels) == prepared.test.n_rows == evaluation.metrics["n_test"]
    assert evaluation.metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    [matrix] = [section for section in evaluation.sections if isinstance(section, Matrix)]
    np.testing.assert_array_equal(matrix.values, confusion_matrix(labels, predicted, labels=list("0123456789")))
    # The model that was written is the model that predicted.
    description = json.loads(storage.read_bytes(files["model.json"].url))
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in description["config"].items()}
    net = ConvNet(ConvNetConfig(**settings))
    net.load_state_dict(load_file(files["model.safetensors"].url))
    rows = prepared.test.open().rows(0, prepared.test.n_rows)
    again = predict(net, torch.from_numpy(rows["images"]), False, True).argmax(dim=1).numpy()
    assert (np.array(description["classes"])[again] == predicted).mean() > 0.995
    # One rank and two made the same model, and the report says what they took.
    assert evaluation.metrics["max_weight_difference"] == 0
    table = next(section for section in evaluation.sections if isinstance(section, Table))
    assert [row[0] for row in table.rows] == [1, 2]
    assert evaluation.metrics["efficiency_1"] == 1
    [errors] = [section for section in evaluation.sections if isinstance(section, Images)]
    assert len(errors.items) == min(24, (labels != predicted).sum())
    assert not storage.exists(job.artifact_url("scratch"))


def test_prepared_shards_are_used_again(job_factory: Any, small_idx: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = job_factory("image_classification", QUICK, str(small_idx))
    first = pipeline.prepare(job, pipeline.load(job))
    indexes = [storage.join(s.url, "index.json") for s in (first.train, first.test)]
    before = [storage.list_files(url)[0].etag for url in indexes]
    again = job_factory("image_classification", QUICK | {"epochs": 3, "width": 8}, str(small_idx))
    with caplog.at_level(logging.INFO, "daskyard"):
        second = pipeline.prepare(again, pipeline.load(again))
    assert "used again" in caplog.text
    assert second == first
    assert [storage.list_files(url)[0].etag for url in indexes] == before
    assert (first.train.n_rows, first.test.n_rows) == (300, 100)


def test_half_prepared_data_is_prepared_again(job_factory: Any, small_idx: Path) -> None:
    job = job_factory("image_classification", QUICK, str(small_idx))
    first = pipeline.prepare(job, pipeline.load(job))
    storage.remove_tree(storage.join(first.train.url, "index.json"))
    again = job_factory("image_classification", QUICK, str(small_idx))
    assert pipeline.prepare(again, pipeline.load(again)) == first


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "garbage": lambda data: b"\xff" * len(data),
    "of another": lambda data: data,  # see there
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["train/index.json", "train/shard", "test/index.json", "test/shard"])
def test_damaged_prepared_data_is_prepared_anew_beside_it_and_then_used_again(
    job_factory: Any, small_idx: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    def prepared() -> Any:
        job = job_factory("image_classification", QUICK, str(small_idx))
        return pipeline.prepare(job, pipeline.load(job))

    first = prepared()
    split, name = file.split("/")
    both = {"train": first.train, "test": first.test}
    names = {each: name if name == "index.json" else shards.infos[0].file for each, shards in both.items()}
    folder, name = Path(both[split].url.removeprefix("file://")), names[split]
    content = DAMAGE[damage]((folder / name).read_bytes())
    if damage == "of another":
        other = "test" if split == "train" else "train"
        content = (folder.parent / other / names[other]).read_bytes()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    second = prepared()
    assert [shards.infos for shards in (second.train, second.test)] == [s.infos for s in (first.train, first.test)]
    for shards in (second.train, second.test):
        assert all(damage_of(shards.url, info) is None for info in shards.infos)
    # Without the training set's index, there is nothing that could be damaged: it is made where it was to be.
    assert (second.train.url == first.train.url) == (file == "train/index.json" and damage == "missing")
    with caplog.at_level(logging.INFO, "daskyard"):
        third = prepared()
    assert third == second
    assert "used again" in caplog.text


def test_prepared_data_that_one_may_neither_write_over_nor_remove_is_prepared_beside_it(
    job_factory: Any, small_idx: Path, s3_server: LocalS3, s3: str
) -> None:
    with S3Proxy(s3_server) as proxy, threads(1) as client:
        job = job_factory("image_classification", QUICK, str(small_idx), f"{s3}/runs", client)
        loaded = pipeline.load(job)
        storage.write_bytes(f"{loaded.prepared_url}/train/half.raw", b"of a run that was killed")
        proxy.add(Rule("denied", method="POST", key="delete"))
        proxy.add(Rule("denied", method="PUT", key=f"{loaded.prepared_url.rsplit('/', 1)[-1]}/train/"))
        prepared = pipeline.prepare(job, loaded)
        assert prepared.train.url == f"{loaded.prepared_url}-2/train"


def test_the_split_is_a_function_of_the_seed(job_factory: Any, digits: Path, tmp_path: Path) -> None:
    def test_numbers(seed: int, output: str) -> list[int]:
        job = job_factory("image_classification", QUICK | {"seed": seed}, str(digits), str(tmp_path / output))
        test: Shards = pipeline.prepare(job, pipeline.load(job)).test
        return test.open().rows(0, test.n_rows, ["numbers"])["numbers"].tolist()

    first = test_numbers(0, "a")
    assert first == test_numbers(0, "b") != test_numbers(1, "c")
    assert len(first) == pytest.approx(0.2 * 1797, rel=0.15)


def test_everything_works_through_s3(job_factory: Any, small_idx: Path, s3: str) -> None:
    for path in small_idx.iterdir():
        storage.write_bytes(f"{s3}/idx/{path.name}", path.read_bytes())
    params = QUICK | {"epochs": 2, "tta": False}
    job = job_factory("image_classification", params, f"{s3}/idx", f"{s3}/runs")
    _, _, evaluation = stages(job)
    assert evaluation.metrics["n_test"] == 100
    assert sorted(file.name for file in job.attempt.files) == [
        "model.json",
        "model.safetensors",
        "predictions/part-00000.parquet",
    ]


def pictures(folder: Path, n_good: int, n_bad: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "PNG")
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(n_good):
            (folder / name / f"{i:04d}.png").write_bytes(buffer.getvalue())
    for i in range(n_bad):
        (folder / "b" / f"x{i}.png").write_bytes(buffer.getvalue()[:30])
    return str(folder)


def test_more_than_one_percent_of_broken_images_is_an_error(job_factory: Any, tmp_path: Path) -> None:
    job = job_factory("image_classification", QUICK, pictures(tmp_path / "data", 100, 3))
    with pytest.raises(InputError, match=r"3 of 203 images do not decode, the first is b/x0\.png"):
        pipeline.prepare(job, pipeline.load(job))


def test_one_percent_of_broken_images_is_counted_and_left_out(job_factory: Any, tmp_path: Path) -> None:
    job = job_factory("image_classification", QUICK, pictures(tmp_path / "data", 100, 2))
    prepared = pipeline.prepare(job, pipeline.load(job))
    assert prepared.train.meta["n_bad"] == 2
    assert job.n_rows == 200


def test_more_ranks_than_workers_are_refused_before_anything_is_read(job_factory: Any, digits: Path) -> None:
    job = job_factory("image_classification", QUICK | {"compare_world_sizes": [1, 3]}, str(digits))
    with pytest.raises(SpecError, match=r"3 ranks need 3 workers, the cluster has 2"):
        pipeline.load(job)


@pytest.mark.parametrize("n_workers", [1, 4])
def test_the_model_does_not_depend_on_the_number_of_workers(
    job_factory: Any, small_idx: Path, client: Client, n_workers: int, tmp_path: Path
) -> None:
    params = QUICK | {"epochs": 2, "tta": False}
    _, two, expected = stages(job_factory("image_classification", params, str(small_idx)))
    with threads(n_workers, set_as_default=False) as other:
        job = job_factory("image_classification", params, str(small_idx), str(tmp_path / "other"), other)
        _, model, evaluation = stages(job)
    assert model.result.world_size == n_workers
    for name, value in two.result.state_dict.items():
        torch.testing.assert_close(model.result.state_dict[name], value, rtol=0, atol=1e-6)
    assert evaluation.metrics["accuracy"] == expected.metrics["accuracy"]


def test_the_model_does_not_depend_on_how_the_images_are_cut(
    job_factory: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = QUICK | {"epochs": 1, "tta": False}
    found = []
    # Threads, so that workers see the changed size of parts.
    with threads(2, set_as_default=False) as other:
        for n_images in (137, 2048):
            monkeypatch.setattr(images, "_IMAGES_PER_PART", n_images)
            output = str(tmp_path / str(n_images))
            prepared, model, evaluation = stages(
                job_factory("image_classification", params, str(digits), output, other)
            )
            found.append((len(prepared.train.infos), model.result.state_dict, evaluation.metrics["accuracy"]))
    (n_small, small, small_accuracy), (n_large, large, large_accuracy) = found
    assert (n_small, n_large) == (14, 1)
    for name, value in small.items():
        torch.testing.assert_close(large[name], value, rtol=0, atol=1e-6)
    assert small_accuracy == large_accuracy
