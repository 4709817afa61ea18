"""Text mining: TF-IDF of documents, a linear classifier, topics, terms and keyphrases.

Documents, their weights and predictions stay on the workers. What reaches the runner is the vocabulary, the model,
counts by class, and the best terms.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import safetensors.numpy
from distributed import Future
from numpy.typing import NDArray

from jobs.errors import InputError
from jobs.estimators.keyphrases import keyphrases
from jobs.estimators.linear_classifier import LinearClassifier
from jobs.estimators.linear_svm import LinearSVM
from jobs.estimators.logistic_regression import LogisticRegression
from jobs.estimators.nmf import NMF
from jobs.estimators.tfidf import EmptyVocabularyError, TfidfVectorizer
from jobs.estimators.topic_coherence import topic_coherence
from jobs.job import Evaluation, Job
from jobs.pipelines import text_mining_report as report
from jobs.pipelines import text_mining_tasks as tasks
from jobs.pipelines.text_mining_report import Group
from jobs.readers.documents import find_documents, read_part
from jobs.report.sections import Bars, Section
from jobs.spec.text_mining import TextMiningParams

# More are a sign that the column holds an id, and a confusion matrix of them would not fit anywhere.
_MOST_CLASSES = 2000


@dataclass(frozen=True)
class Loaded:
    """Blocks of documents on the workers; `test` is None where the input has no test set of its own."""

    train: list[Future]
    test: list[Future] | None
    counts: Counter[str]


@dataclass(frozen=True)
class Prepared:
    """Training and test documents as TF-IDF weights, classes as numbers; all but `vectorizer` on the workers."""

    vectorizer: TfidfVectorizer
    classes: list[str]
    counts: Counter[str]
    texts: list[Future]
    weights: list[Future]
    targets: list[Future]
    rows: list[Future]
    test_weights: list[Future]
    test_targets: list[Future]
    test_rows: list[Future]


@dataclass(frozen=True)
class Model:
    """What was fitted; `shares` on the workers say how much of each topic the training documents have."""

    classifier: LinearClassifier | None
    nmf: NMF | None
    shares: list[Future]
    classes: list[Group]
    topics: list[Group]
    topic_shares: list[float]


def load(job: Job) -> Loaded:
    """Read the documents into the workers' memory."""
    train, counts = _read(job, job.spec.input.url)
    test, test_counts = _read(job, job.spec.input.test_url) if job.spec.input.test_url else (None, Counter())
    counts += test_counts
    for name in ("without_text", "without_label"):
        if counts[name]:
            job.log.warning("%d of %d rows dropped: %s", counts[name], counts["rows"], name.replace("_", " "))
    job.n_rows = counts["documents"]
    return Loaded(train, test, counts)


def prepare(job: Job, loaded: Loaded) -> Prepared:
    """Split the documents, number the classes, and weigh the terms."""
    params: TextMiningParams = job.params
    client = job.client
    train, test = _split(job, loaded)
    classes: list[str] = []
    if params.label_column is not None:
        train_classes, test_classes = (_count_classes(job, blocks) for blocks in (train, test))
        _check_classes(job, train_classes, test_classes)
        classes = sorted(train_classes.keys() | test_classes.keys())
    texts, test_texts = ([client.submit(tasks.texts, block) for block in blocks] for blocks in (train, test))
    vectorizer = TfidfVectorizer(
        mode=params.vectorizer,
        ngram_range=(1, params.max_ngram),
        min_token_length=params.min_token_length,
        stop_words="english" if params.stop_words == "english" else None,
        min_df=params.min_df,
        max_df=params.max_df,
        max_features=params.max_features,
        sublinear_tf=params.sublinear_tf,
        n_hashed=params.n_hashed,
    )
    try:
        weights = vectorizer.fit_transform(texts)
    except EmptyVocabularyError as error:
        raise InputError(f"{job.spec.input.url}: empty vocabulary: {error}") from error
    if params.n_topics > min(vectorizer.n_documents_, len(vectorizer.idf_)):
        raise InputError(
            f"{job.spec.input.url}: {vectorizer.n_documents_} documents of {len(vectorizer.idf_)} terms hold no "
            f"{params.n_topics} topics; lower params.n_topics"
        )
    job.wait([client.submit(tasks.n_rows, block) for block in weights], unit="blocks")
    shared = job.share(classes, len(train) + len(test))
    targets, test_targets = (
        [client.submit(tasks.targets, block, shared) for block in blocks] if classes else [] for blocks in (train, test)
    )
    return Prepared(
        vectorizer=vectorizer,
        classes=classes,
        counts=loaded.counts,
        texts=texts,
        weights=weights,
        targets=targets,
        rows=[client.submit(tasks.rows, block) for block in train],
        test_weights=vectorizer.transform(test_texts) if test else [],
        test_targets=test_targets,
        test_rows=[client.submit(tasks.rows, block) for block in test],
    )


def fit(job: Job, prepared: Prepared) -> Model:
    """Fit classifier and topics, and find the terms and phrases that stand for them."""
    params: TextMiningParams = job.params
    classifier, nmf = None, None
    class_groups: list[Group] = []
    topic_groups: list[Group] = []
    shares: list[Future] = []
    totals = np.empty(0)
    if prepared.classes:
        kind = LinearSVM if params.classifier == "svm" else LogisticRegression
        class_weight: Literal["balanced"] | None = "balanced" if params.class_weight == "balanced" else None
        classifier = kind(C=params.C, class_weight=class_weight, max_iter=params.max_iter)
        classifier.fit(
            prepared.weights,
            prepared.targets,
            on_iteration=lambda step, slope: job.progress(step, params.max_iter, "Newton steps"),
        )
        if not classifier.is_converged_:
            job.log.warning("classifier: not converged after %d steps; raise params.max_iter", classifier.n_iter_)
        names = [prepared.classes[number] for number in classifier.classes_]
        signs = np.vstack([-classifier.coef_, classifier.coef_]) if len(names) == 2 else classifier.coef_
        class_groups = _described(job, prepared, names, signs, classifier.classes_, prepared.targets)
    if params.n_topics:
        nmf = NMF(params.n_topics, max_iter=params.topic_iterations, seed=params.seed)
        nmf.fit(
            prepared.weights,
            on_iteration=lambda step, error: job.progress(step, params.topic_iterations, "topic iterations"),
        )
        shares = nmf.transform(prepared.weights)
        strongest = [job.client.submit(tasks.strongest, block) for block in shares]
        numbers = np.arange(params.n_topics)
        names = [f"topic {number}" for number in numbers]
        topic_groups = _described(job, prepared, names, nmf.components_, numbers, strongest)
        totals = np.sum(job.map(tasks.column_sums, shares, unit="blocks"), axis=0) * nmf.components_.sum(axis=1)
    topic_shares = [float(share) for share in totals / max(totals.sum(), 1e-300)]
    return Model(classifier, nmf, shares, class_groups, topic_groups, topic_shares)


def evaluate(job: Job, prepared: Prepared, model: Model) -> Evaluation:
    """Measure the classifier on the test documents, and the coherence of the topics on the training documents."""
    metrics: dict[str, float | int | str] = {
        "n_documents": prepared.counts["documents"],
        "n_train_documents": int(prepared.vectorizer.n_documents_),
        "n_features": len(prepared.vectorizer.idf_),
        "n_dropped_without_text": prepared.counts["without_text"],
        "n_dropped_without_label": prepared.counts["without_label"],
    }
    sections: list[Section] = []
    if model.classifier is not None:
        predicted = model.classifier.predict(prepared.test_weights)
        pairs = list(zip(predicted, prepared.test_targets, strict=True))
        counts = [job.client.submit(tasks.confusion, *pair, n_classes=len(prepared.classes)) for pair in pairs]
        confusion = np.sum(job.wait(counts, unit="blocks"), axis=0)
        metrics |= report.class_metrics(confusion)
        metrics["n_newton_steps"] = model.classifier.n_iter_
        sections += report.class_sections(prepared.classes, confusion)
        sections.append(report.group_table("What stands for the classes", "class", model.classes))
    if model.nmf is not None:
        top = np.argsort(-model.nmf.components_, axis=1, kind="stable")[:, : job.params.n_top]
        coherence = topic_coherence(prepared.weights, top)
        metrics["n_topics"] = len(model.topics)
        metrics["topic_coherence"] = float(coherence.mean())
        metrics["topic_error"] = model.nmf.reconstruction_err_ / model.nmf.norm_
        sections.append(
            Bars("Topics: share of the text", [report.title(topic) for topic in model.topics], model.topic_shares)
        )
        sections.append(report.group_table("Topics", "topic", model.topics, coherence.tolist()))
    headline = "accuracy" if model.classifier is not None else "topic_coherence"
    return Evaluation(headline, metrics, sections)


def write(job: Job, prepared: Prepared, model: Model, evaluation: Evaluation) -> None:
    """Write model, vocabulary, terms and keyphrases; the workers write predictions and topics of documents."""
    vectorizer = prepared.vectorizer
    tensors: dict[str, NDArray[Any]] = {"idf": vectorizer.idf_}
    if model.classifier is not None:
        tensors |= {"coef": model.classifier.coef_, "intercept": model.classifier.intercept_}
    if model.nmf is not None:
        tensors["topics"] = model.nmf.components_
    job.write_bytes("model.safetensors", safetensors.numpy.save(tensors))
    fitted: Any = model.classifier.classes_ if model.classifier is not None else []
    description = {
        "vectorizer": vectorizer.get_params(),
        "n_documents": int(vectorizer.n_documents_),
        "classifier": job.params.classifier if model.classifier is not None else None,
        "classes": [prepared.classes[number] for number in fitted],
        "topic_shares": model.topic_shares,
    }
    job.write_json("model.json", description)
    if vectorizer.vocabulary_ is not None:
        columns = {"term": vectorizer.vocabulary_, "document_frequency": vectorizer.document_frequency_}
        job.write_parquet("vocabulary.parquet", pa.table(columns | {"idf": vectorizer.idf_}))
    for name, groups in (("class", model.classes), ("topic", model.topics)):
        if groups:
            job.write_parquet(f"{name}_terms.parquet", report.term_rows(name, groups))
            job.write_parquet(f"{name}_keyphrases.parquet", report.phrase_rows(name, groups))
    if model.classifier is not None:
        scores = model.classifier.decision_function(prepared.test_weights)
        columns_of = list(zip(prepared.test_rows, prepared.test_targets, scores, strict=True))
        _write_parts(job, "predictions", tasks.predictions, columns_of, [prepared.classes, fitted])
    if model.nmf is not None:
        _write_parts(
            job, "document_topics", tasks.document_topics, list(zip(prepared.rows, model.shares, strict=True)), []
        )


def _read(job: Job, url: str) -> tuple[list[Future], Counter[str]]:
    """Submit the reading of all parts; return the blocks, and counts of rows."""
    params: TextMiningParams = job.params
    size = None if params.partition_mib is None else max(int(params.partition_mib * 2**20), 1)
    source = find_documents(job, url, job.spec.input.format, params.text_column, params.label_column, size)
    blocks = [job.client.submit(read_part, part, pure=False) for part in source.parts]
    counts: list[Counter[str]] = job.wait([job.client.submit(tasks.count_rows, block) for block in blocks])
    total = sum(counts, Counter())
    if not total["documents"]:
        raise InputError(
            f"{url}: no documents: of {total['rows']} rows {total['without_text']} have nothing in "
            f"{params.text_column!r}, {total['without_label']} more nothing in {params.label_column!r}; "
            "correct the data, params.text_column or params.label_column"
        )
    first_rows = np.cumsum([0, *(count["rows"] for count in counts)])[:-1].tolist()
    return [
        job.client.submit(tasks.numbered, block, first) for block, first in zip(blocks, first_rows, strict=True)
    ], total


def _split(job: Job, loaded: Loaded) -> tuple[list[Future], list[Future]]:
    """Return blocks to train on and to measure on. Without labels nothing is set aside."""
    has_labels = job.params.label_column is not None
    if job.trial is None and (loaded.test is not None or not has_labels):
        return loaded.train, loaded.test or []
    trial = job.trial if job.trial is None or has_labels else replace(job.trial, validation_fraction=0.0)
    fraction = job.params.test_fraction if has_labels and loaded.test is None else 0.0
    train, measured = (
        [job.client.submit(tasks.half, block, job.params.seed, fraction, trial, is_measured) for block in loaded.train]
        for is_measured in (False, True)
    )
    return train, measured if has_labels else []


def _count_classes(job: Job, blocks: list[Future]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counts in job.map(tasks.count_classes, blocks, _MOST_CLASSES, job.params.label_column):
        total += counts
    return total


def _check_classes(job: Job, train: Counter[str], test: Counter[str]) -> None:
    url, column = job.spec.input.url, job.params.label_column
    classes = train.keys() | test.keys()
    if len(classes) > _MOST_CLASSES:
        raise InputError(f"{url}: {len(classes)} classes in {column!r}, too many; set params.label_column to another")
    if len(classes) < 2:
        raise InputError(
            f"{url}: one class only in {column!r}, {next(iter(classes), None)!r}; "
            "give documents of two or more, or set params.label_column to null"
        )
    if len(train) < 2 or not test:
        raise InputError(
            f"{url}: {train.total()} documents of {len(train)} classes to train on and {test.total()} to test on are "
            "too few; give more documents or change params.test_fraction"
        )
    unknown = sorted(test.keys() - train.keys())
    if unknown:
        job.log.warning("%d classes have no document to train on, such as %r", len(unknown), unknown[0])


def _described(
    job: Job, prepared: Prepared, names: list[str], weights: NDArray[Any], numbers: Any, groups: list[Future]
) -> list[Group]:
    """Find the top terms and the keyphrases of classes or topics; row i of `weights` is of group ``numbers[i]``."""
    n_top = min(job.params.n_top, weights.shape[1])
    top = np.argsort(-weights, axis=1, kind="stable")[:, :n_top]
    terms = prepared.vectorizer.feature_names(top.ravel(), prepared.texts).reshape(top.shape)
    phrases = keyphrases(prepared.texts, groups, int(max(numbers)) + 1, prepared.vectorizer, job.params.n_top)
    return [
        Group(
            name,
            [(terms[at, rank], float(weights[at, top[at, rank]])) for rank in range(n_top)],
            phrases[int(numbers[at])],
        )
        for at, name in enumerate(names)
    ]


def _write_parts(job: Job, folder: str, function: Any, columns: list[tuple[Any, ...]], shared: list[Any]) -> None:
    """Have the workers write one Parquet file a block, and register the files."""
    names = [f"{folder}/part-{number:05d}.parquet" for number in range(len(columns))]
    given = [job.share(each, len(columns)) for each in shared]
    written = [
        job.client.submit(function, job.artifact_url(name), *column, *given, pure=False)
        for name, column in zip(names, columns, strict=True)
    ]
    for name, (size, sha256) in zip(names, job.wait(written, unit="files"), strict=True):
        job.add_file(name, size, sha256)
