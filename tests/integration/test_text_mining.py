import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from distributed import Client
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.svm import LinearSVC

from jobs import runner, storage
from jobs.artifacts import Manifest
from jobs.errors import InputError, SpecError
from jobs.spec import parse
from tests.threads import threads

CLASSES = ("cooking", "football", "space")
Run = Callable[..., Manifest]


def documents(n: int = 400, seed: int = 0) -> tuple[list[str], list[str]]:
    """Three classes with 12 words of their own, 40 in common, and a phrase each; a fifth of the words mislead."""
    random = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(n):
        label = random.integers(len(CLASSES))
        topics = np.where(random.random(18) < 0.2, random.integers(0, len(CLASSES), 18), label)
        words = [
            f"{CLASSES[topic]}{random.integers(12)}" if random.random() < 0.3 else f"common{random.integers(40)}"
            for topic in topics
        ]
        if random.random() < 0.4:
            words.insert(random.integers(len(words)), f"{CLASSES[label]} phrase")
        texts.append(" ".join(words))
        labels.append(CLASSES[label])
    return texts, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name, seed in (("train", 0), ("test", 1)):
        texts, labels = documents(seed=seed)
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"{name}.parquet", row_group_size=100)
    return folder


@pytest.fixture
def run(tmp_path: Path, client: Client) -> Run:
    def run(input: Any, client: Client = client, output: str = str(tmp_path / "runs"), **params: Any) -> Manifest:
        spec = parse({"pipeline": "text_mining", "input": input, "output": output, "params": params})
        return runner.run(spec, client=client).manifest

    return run


@pytest.fixture(scope="module")
def clusters() -> Iterator[Callable[[int], Client]]:
    opened: list[Client] = []

    def client(n_workers: int) -> Client:
        opened.append(threads(n_workers))
        return opened[-1]

    yield client
    for each in reversed(opened):
        each.close()


def table(manifest: Manifest, prefix: str) -> Any:
    files = [file for file in manifest.files if file.name.startswith(prefix)]
    assert files
    return pa.concat_tables([pq.read_table(io.BytesIO(storage.read_bytes(file.url))) for file in files]).to_pandas()


def test_a_run_on_s3_reaches_the_accuracy_of_scikit_learn_and_writes_what_it_says(
    run: Run, data: Path, s3: str
) -> None:
    for name in ("train", "test"):
        storage.write_bytes(f"{s3}/{name}.parquet", (data / f"{name}.parquet").read_bytes())
    manifest = run(
        {"url": f"{s3}/train.parquet", "test_url": f"{s3}/test.parquet"}, output=f"{s3}/runs", n_topics=3, n_top=6
    )
    (train, train_labels), (test, test_labels) = documents(seed=0), documents(seed=1)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5, token_pattern=r"\b\w+\b")
    oracle = LinearSVC(tol=1e-8).fit(vectorizer.fit_transform(train), train_labels)
    expected = oracle.predict(vectorizer.transform(test))
    assert manifest.metrics["accuracy"] == pytest.approx(accuracy_score(test_labels, expected), abs=0.006)
    assert manifest.metrics["n_documents"] == manifest.n_rows == 800
    assert manifest.metrics["n_features"] == len(vectorizer.vocabulary_)

    predictions = table(manifest, "predictions/").sort_values("row")
    assert predictions["row"].tolist() == list(range(400))
    assert predictions["label"].tolist() == test_labels
    assert manifest.metrics["accuracy"] == accuracy_score(predictions["label"], predictions["predicted"])
    assert manifest.metrics["macro_f1"] == pytest.approx(
        f1_score(predictions["label"], predictions["predicted"], average="macro")
    )

    terms = table(manifest, "class_terms")
    phrases = table(manifest, "class_keyphrases")
    topics = table(manifest, "topic_terms")
    for name in CLASSES:
        assert terms[terms["class"] == name]["term"].str.startswith(name).all()
        assert phrases[phrases["class"] == name]["phrase"].iloc[0] == f"{name} phrase"
    of_topics = topics.groupby("topic")["term"].agg(lambda terms: {term.rstrip("0123456789") for term in terms})
    assert len(of_topics) == 3

    files = {file.name: storage.read_bytes(file.url) for file in manifest.files}
    tensors = safetensors.numpy.load(files["model.safetensors"])
    vocabulary = table(manifest, "vocabulary")["term"].tolist()
    assert vocabulary == vectorizer.get_feature_names_out().tolist()
    np.testing.assert_allclose(tensors["idf"], vectorizer.idf_)
    np.testing.assert_allclose(tensors["coef"], oracle.coef_, atol=2e-3)
    assert json.loads(files["model.json"])["classes"] == list(CLASSES)
    assert b"football phrase" in files["report.html"]
    assert table(manifest, "document_topics/")["row"].tolist() == list(range(400))


@pytest.mark.slow
@pytest.mark.parametrize("vectorizer", ["exact", "hashed"])
def test_the_result_is_the_same_for_1_2_and_4_workers_and_for_any_size_of_partitions(
    run: Run, data: Path, clusters: Callable[[int], Client], vectorizer: str
) -> None:
    found = []
    for n_workers, mib in ((1, None), (2, 0.002), (4, 0.01)):
        manifest = run(
            str(data / "train.parquet"),
            clusters(n_workers),
            f"memory://runs-{n_workers}-{vectorizer}",
            vectorizer=vectorizer,
            partition_mib=mib,
            n_topics=3,
            n_hashed=4096,
        )
        found.append(manifest)
    first, *others = found
    for other in others:
        assert other.metrics.keys() == first.metrics.keys()
        for name, value in first.metrics.items():
            assert other.metrics[name] == pytest.approx(value, rel=1e-6), name
        for name in ("predictions/", "document_topics/"):
            one, two = (table(manifest, name).sort_values("row", ignore_index=True) for manifest in (first, other))
            assert one.drop(columns=["score", "share"], errors="ignore").equals(
                two.drop(columns=["score", "share"], errors="ignore")
            )
        for name in ("class_terms", "class_keyphrases"):
            assert table(first, name).iloc[:, :3].equals(table(other, name).iloc[:, :3])
    assert 0.15 < first.metrics["n_test_documents"] / 400 < 0.25
    assert first.metrics["accuracy"] > 0.85


def test_a_seed_changes_the_split(run: Run, data: Path) -> None:
    rows = [set(table(run(str(data / "train.parquet"), seed=seed), "predictions/")["row"]) for seed in (0, 1)]
    assert rows[0] != rows[1]


def test_logistic_regression_with_balanced_classes_and_pairs_of_words(run: Run, data: Path) -> None:
    manifest = run(
        {"url": str(data / "train.parquet"), "test_url": str(data / "test.parquet")},
        classifier="logistic",
        class_weight="balanced",
        max_ngram=2,
        C=10.0,
    )
    assert manifest.metrics["accuracy"] > 0.85
    assert any(" " in term for term in table(manifest, "vocabulary")["term"])


def test_topics_alone_need_no_labels(run: Run, tmp_path: Path) -> None:
    texts, _ = documents()
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    manifest = run(str(tmp_path / "texts.jsonl"), label_column=None, n_topics=4)
    assert manifest.headline == "topic_coherence"
    assert manifest.metrics["n_train_documents"] == 400
    assert not any(file.name.startswith("predictions") for file in manifest.files)


def test_two_classes_have_terms_of_both(run: Run, tmp_path: Path) -> None:
    lines = [f"{'good' if i % 2 else 'bad'} text number{i % 7}\t{'plus' if i % 2 else 'minus'}" for i in range(100)]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "\n".join(lines))
    manifest = run(str(tmp_path / "a.tsv"), max_df=1.0, stop_words="none")
    terms = table(manifest, "class_terms").query("rank == 1").set_index("class")["term"]
    assert manifest.metrics["accuracy"] == 1
    assert terms.to_dict() == {"minus": "bad", "plus": "good"}


def test_a_class_that_only_the_test_set_has_counts_as_wrong(run: Run, tmp_path: Path) -> None:
    rows = [f"apple word{i % 3},a\nboat word{i % 3},b" for i in range(20)]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(rows))
    (tmp_path / "test.csv").write_text("text,label\napple,a\nboat,b\napple,a\nother apple,new")
    manifest = run({"url": str(tmp_path / "train.csv"), "test_url": str(tmp_path / "test.csv")}, max_df=1.0)
    assert manifest.metrics["accuracy"] == 0.75
    assert manifest.metrics["n_classes"] == 3


def test_rows_without_text_or_label_are_dropped_and_counted(run: Run, tmp_path: Path) -> None:
    good = [f"{name} words here,{name}" for name in ("red", "blue") for _ in range(30)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join([*good, ",red", "no label,", "again,", *good]))
    manifest = run(str(tmp_path / "a.csv"), max_df=1.0)
    assert manifest.metrics["n_dropped_without_text"] == 1
    assert manifest.metrics["n_dropped_without_label"] == 2
    assert manifest.metrics["n_documents"] == manifest.n_rows == 120


@pytest.mark.parametrize(
    ("lines", "params", "message"),
    [
        (["a,x", "b,x"], {}, "one class only in 'label', 'x'; give documents of two or more"),
        (["a,", "b,"], {}, "no documents: of 2 rows 0 have nothing in 'text', 2 more nothing in 'label'"),
        ([",x", ",y"], {}, "no documents: of 2 rows 2 have nothing in 'text'"),
        (["a b,x", "c d,y"], {"test_fraction": 0.999}, "documents of . classes to train on .* are too few"),
        (["!!,x", "??,y"] * 20, {}, "empty vocabulary: .* no word in any of"),
        (["a,x", "b,y"] * 20, {"min_df": 40}, "empty vocabulary: min_df=40, .* widen them"),
        (
            ["apple,x", "boat,y"] * 20,
            {"n_topics": 3, "max_df": 1.0},
            "documents of 2 terms hold no 3 topics; lower params.n_topics",
        ),
        ([f"text,{i}" for i in range(2100)], {}, "classes.* set params.label_column to another"),
    ],
)
def test_bad_documents_are_input_errors_and_leave_no_run(
    run: Run, tmp_path: Path, lines: list[str], params: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines))
    with pytest.raises(InputError, match=message) as caught:
        run(str(tmp_path / "a.csv"), **params)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_an_error_of_a_worker_reaches_the_caller_as_it_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "t", "label": "a"}\n' * 500 + "{oops\n")
    with pytest.raises(InputError, match=r"a\.jsonl:501: not valid JSON"):
        run(str(tmp_path / "a.jsonl"), partition_mib=0.002)


def test_nothing_to_do_is_a_wrong_spec() -> None:
    with pytest.raises(SpecError, match="label_column is null and n_topics 0: nothing to do"):
        parse({"pipeline": "text_mining", "input": "x", "output": "y", "params": {"label_column": None}})
