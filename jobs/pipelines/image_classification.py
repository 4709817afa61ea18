"""image_classification: a convolutional network on labelled images, trained data-parallel across the workers.

prepare decodes once, on the workers, into raw uint8 shards that the next run on the same input uses again; fit trains
(`jobs.training`); evaluate predicts the test set in blocks on the workers, which also write the predictions.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from distributed import Future
from safetensors.torch import save
from torch import nn

from jobs import storage
from jobs.errors import InputError, StorageDeniedError, StorageMissingError
from jobs.job import Evaluation, Job
from jobs.pipelines import image_report
from jobs.pipelines.image_blocks import (
    BlockScore,
    PreparedPart,
    predict_block,
    prepare_part,
    supports_bfloat16,
    whitening_of,
)
from jobs.pipelines.trained import checkpoints_of, tell_change, world_sizes
from jobs.plain import plain_tree
from jobs.readers import images as readers
from jobs.training.convnet import ConvNet, ConvNetConfig, ImageData, nesterov_sgd, smoothed_cross_entropy, triangle
from jobs.training.hardware import choose_workers
from jobs.training.shards import Shards, commit_index, damage_of
from jobs.training.trainer import Trainer, TrainResult

_MAX_BAD_SHARE = 0.01
_BLOCK_IMAGES = 1024
# So many folders of prepared data for the same images may be damaged.
_MOST_FOLDERS = 8
_META = {"format", "classes", "shape", "n_bad", "mean", "std"}


@dataclass(frozen=True)
class Loaded:
    """The input's listing, which stays on a worker, and where its prepared form goes."""

    listing: Future
    test_listing: Future | None
    prepared_url: str


@dataclass(frozen=True)
class Prepared:
    """Training and test set as shards."""

    train: Shards
    test: Shards

    @property
    def classes(self) -> list[str]:
        """Class names; labels are positions in this list."""
        return list(self.train.meta["classes"])


@dataclass(frozen=True)
class Model:
    """The trained network and the other trainings that `compare_world_sizes` asked for."""

    config: ConvNetConfig
    result: TrainResult
    compared: Mapping[int, TrainResult]


# --- load and prepare -----------------------------------------------------------------------------------------------


def load(job: Job) -> Loaded:
    """List the input on a worker, and see whether there are workers enough for what the params ask."""
    params = job.params
    wanted = max([params.world_size or 1, *params.compare_world_sizes])
    choose_workers(job.client, wanted, params.hardware)
    urls = [url for url in (job.spec.input.url, job.spec.input.test_url) if url is not None]
    listings = [job.client.submit(readers.list_input, url, pure=False) for url in urls]
    fingerprints = []
    for fingerprint, files in job.map(_summary, listings, unit="folders"):
        fingerprints.append(fingerprint)
        job.record_input(files)
    what: list[Any] = [fingerprints, job.spec.input.format, params.image_size, params.test_fraction, params.seed]
    if job.trial is not None:
        what.append(asdict(job.trial))
    key = "images-" + hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    return Loaded(listings[0], listings[1] if len(listings) > 1 else None, job.prepared_url(key))


def _summary(listing: readers.Listing) -> tuple[str, list[storage.StoredFile]]:
    return listing.fingerprint, listing.summary


def prepare(job: Job, loaded: Loaded) -> Prepared:
    """Decode the images into shards, unless an earlier run did; split them where the input has no test set.

    What an earlier run left is read whole before it is used. Where it is damaged, the images are decoded once more,
    into a folder beside it: other runs may be reading there, and what one may write one may not always remove.
    """
    folders = [loaded.prepared_url, *(f"{loaded.prepared_url}-{n}" for n in range(2, _MOST_FOLDERS + 1))]
    for folder in folders:
        train_url, test_url = (storage.join(folder, split) for split in ("train", "test"))
        # The training set's index is created last: it stands for both.
        is_reused = storage.exists(storage.join(train_url, "index.json"))
        damage = None
        try:
            if not is_reused and not _decode(job, loaded, train_url, test_url):
                is_reused = True  # somebody else was first, or left half of it
        except StorageDeniedError:
            # Credentials that may not write over a file meet those of a run that was killed.
            if not storage.list_sizes(folder):
                raise
            damage = "begun by another run, and not to be written over"
        if damage is None:
            damage = _damage(job, loaded, train_url, test_url) if is_reused else None
        if damage is None:
            if is_reused:
                job.log.info("%s: prepared by an earlier run, used again", folder)
            prepared = Prepared(Shards.load(train_url), Shards.load(test_url))
            job.n_rows = prepared.train.n_rows + prepared.test.n_rows
            return prepared
        job.log.warning("%s: cannot be used (%s); prepared anew beside it, you may remove it", folder, damage)
    raise InputError(
        f"{loaded.prepared_url}: {_MOST_FOLDERS} times prepared and damaged; remove {folders[0]} to {folders[-1]}"
    )


def _damage(job: Job, loaded: Loaded, train_url: str, test_url: str) -> str | None:
    """Return what is wrong with prepared data, None where nothing is; workers read all of it."""
    for url in (train_url, test_url):
        try:
            shards = Shards.load(url)
        except (InputError, StorageMissingError) as error:
            return str(error)
        if not shards.meta.keys() >= _META or shards.meta.get("key", _key_of(loaded)) != _key_of(loaded):
            return f"{url}/index.json: of other images"
        check = functools.partial(damage_of, url)
        found = next((damage for damage in job.map(check, shards.infos, unit="shards") if damage is not None), None)
        if found is not None:
            return found
    return None


def _key_of(loaded: Loaded) -> str:
    return loaded.prepared_url.rsplit("/", 1)[-1]


def _decode(job: Job, loaded: Loaded, train_url: str, test_url: str) -> bool:
    """Decode the images into shards; False where other indices were there already, which stay."""
    scratch = job.artifact_url("scratch")
    try:
        scan = job.client.submit(
            readers.scan,
            loaded.listing,
            loaded.test_listing,
            job.spec.input.format,
            job.params.image_size,
            scratch,
            pure=False,
        )
        [(n_parts, facts)] = job.map(_facts, [scan], unit="scans")
        test_fraction = None if facts["has_test_set"] else job.params.test_fraction
        done: list[PreparedPart] = job.map(
            prepare_part, range(n_parts), scan, train_url, test_url, test_fraction, job.params.seed, job.trial
        )
    finally:
        job.remove(scratch)
    _check_classes(job.spec.input.url, done)
    meta = {**facts, **_bad_images(job, done), "key": _key_of(loaded)} | _normalisation(done)
    is_first = commit_index(test_url, [part.test for part in done if part.test is not None], meta)
    return commit_index(train_url, [part.train for part in done if part.train is not None], meta) and is_first


def _facts(scan: readers.Scan) -> tuple[int, dict[str, Any]]:
    facts = {"format": scan.format, "classes": list(scan.classes), "shape": list(scan.shape)}
    return len(scan.parts), facts | {"has_test_set": scan.has_test_set, "n_ignored": scan.n_ignored}


def _bad_images(job: Job, parts: Sequence[PreparedPart]) -> dict[str, Any]:
    """Count what did not decode; a few are dropped, more are an error."""
    n_bad = sum(part.n_bad for part in parts)
    n = n_bad + sum(sum(part.n_train) + sum(part.n_test) for part in parts)
    first = next((part.first_bad for part in parts if part.first_bad), "")
    if n_bad > _MAX_BAD_SHARE * n:
        raise InputError(
            f"{job.spec.input.url}: {n_bad} of {n} images do not decode, the first is {first}; repair or remove them"
        )
    if n_bad:
        job.log.warning("%d of %d images do not decode and are left out, the first is %s", n_bad, n, first)
    return {"n_bad": n_bad, "first_bad": first}


def _normalisation(parts: Sequence[PreparedPart]) -> dict[str, list[float]]:
    n = sum(part.n_pixels for part in parts)
    # Sums of bytes and of their squares are exact integers, whatever the parts.
    sums, squares = (
        [sum(channel) for channel in zip(*(getattr(p, name) for p in parts), strict=True)]
        for name in ("pixel_sums", "pixel_squares")
    )
    mean = [s / n for s in sums]
    std = [math.sqrt(max(q / n - m * m, 0.0)) or 1.0 for q, m in zip(squares, mean, strict=True)]
    return {"mean": mean, "std": std}


def _check_classes(url: str, parts: Sequence[PreparedPart]) -> None:
    n_train, n_test = (np.sum([getattr(p, name) for p in parts], axis=0) for name in ("n_train", "n_test"))
    if np.count_nonzero(n_train) < 2:
        raise InputError(f"{url}: fewer than two classes among {n_train.sum()} training images; add images")
    if not n_test.any():
        raise InputError(f"{url}: no image was set aside for the test; raise params.test_fraction or add images")


# --- fit ------------------------------------------------------------------------------------------------------------


def fit(job: Job, prepared: Prepared) -> Model:
    """Train at the world size of the params, and at those to be compared; write model.safetensors."""
    params = job.params
    meta = prepared.train.meta
    config = ConvNetConfig(
        image_size=(meta["shape"][0], meta["shape"][1]),
        n_channels=meta["shape"][2],
        n_classes=len(prepared.classes),
        width=params.width,
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        is_bfloat16=_is_bfloat16(job),
    )
    [whitening] = job.map(whitening_of, [prepared.train], config, unit="samples")
    world_size, max_world_size = world_sizes(job)
    sizes = sorted({world_size, *params.compare_world_sizes})
    # Those that are compared begin at their beginning, and stay as they are: it is their time that counts.
    is_compared = len(sizes) > 1
    results = {}
    for done, size in enumerate(sizes):
        trainer = Trainer(
            model_fn=functools.partial(ConvNet, config, whitening),
            loss_fn=functools.partial(smoothed_cross_entropy, label_smoothing=params.label_smoothing),
            optimiser_fn=functools.partial(_optimiser, params=params),
            data=ImageData(prepared.train, params.seed, params.flip, params.translate),
            schedule_fn=triangle,
            epochs=params.epochs,
            batch_size=params.batch_size,
            micro_batch_size=min(params.micro_batch_size, params.batch_size),
            seed=params.seed,
            timeout_s=params.step_timeout_s,
            hardware=params.hardware,
            checkpoints=None if is_compared else checkpoints_of(job),
            checkpoint_every_s=params.checkpoint_every_s,
            world_size=size,
            max_world_size=size if is_compared else max_world_size,
        )
        results[size] = trainer.fit(
            job.client,
            functools.partial(_progress, job, done, len(sizes)),
            functools.partial(tell_change, job),
        )
        job.log.info("%d ranks: %.0f images/s", size, results[size].samples_per_s)
    job.write_bytes("model.safetensors", save(dict(results[world_size].state_dict)))
    return Model(config, results[world_size], {size: results[size] for size in params.compare_world_sizes})


def _progress(job: Job, n_fits_done: int, n_fits: int, done: int, total: int) -> None:
    job.progress(n_fits_done * total + done, n_fits * total, "images")


def _optimiser(model: nn.Module, params: Any) -> torch.optim.Optimizer:
    return nesterov_sgd(model, params.learning_rate, params.weight_decay, params.batch_size)


def _is_bfloat16(job: Job) -> bool:
    if job.params.precision == "auto":
        return all(job.client.run(supports_bfloat16).values())
    return bool(job.params.precision == "bfloat16")


# --- evaluate and write ---------------------------------------------------------------------------------------------


def evaluate(job: Job, prepared: Prepared, model: Model) -> Evaluation:
    """Predict the test set in blocks on the workers, which write the predictions; sum up what they counted."""
    blocks = prepared.test.blocks(_BLOCK_IMAGES)
    scores: list[BlockScore] = job.map(
        predict_block,
        list(enumerate(blocks)),
        prepared.test,
        model.config,
        tuple(prepared.classes),
        job.artifact_url("model.safetensors"),
        job.artifact_url("predictions"),
        job.params.tta and job.params.flip,
        job.params.tta and job.params.translate > 0,
        unit="blocks",
    )
    for score in scores:
        job.add_file(f"predictions/{score.file}", score.size, score.sha256)
    confusion = np.sum([score.confusion for score in scores], axis=0)
    errors = sorted((error for score in scores for error in score.errors), key=lambda e: (-e.probability, e.row))
    log_loss = sum(score.log_loss for score in scores) / prepared.test.n_rows
    return image_report.evaluation(prepared, model, confusion, log_loss, errors)


def write(job: Job, prepared: Prepared, model: Model, evaluation: Evaluation) -> None:
    """Write model.json: what it takes, with model.safetensors, to make the network again."""
    job.write_json(
        "model.json",
        {
            "network": f"{ConvNet.__module__}.{ConvNet.__qualname__}",
            "config": asdict(model.config),
            "classes": prepared.classes,
            "input": "uint8 (n, height, width, channels)",
            "metrics": plain_tree(evaluation.metrics),
        },
    )
