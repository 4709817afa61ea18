from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.feature_extraction.text import TfidfVectorizer as Oracle

from jobs.estimators.tfidf import EmptyVocabularyError, TfidfVectorizer
from tests.threads import threads


def corpus(n: int = 60, n_words: int = 80, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, n_words + 1)
    words = np.asarray([f"{'the' if i == 0 else 'Wörd'}{i}" for i in range(n_words)] + ["the"])
    share = np.append(weights, 0.5)
    texts = [" ".join(random.choice(words, random.integers(0, 40), p=share / share.sum())) for _ in range(n)]
    return [*texts, "", "unique_a unique_b", "x y z"]


def blocks_of(items: list[Any], sizes: list[int]) -> list[list[Any]]:
    ends = np.cumsum(sizes)
    return [items[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sublinear_tf": True},
        {"ngram_range": (1, 2)},
        {"ngram_range": (2, 2), "min_df": 2},
        {"ngram_range": (1, 2), "stop_words": "english", "min_df": 3, "max_df": 0.4},
        {"stop_words": ["the0", "wörd3"], "max_df": 30},
        {"min_df": 0.1, "max_df": 0.9},
    ],
    ids=str,
)
def test_weights_and_vocabulary_are_those_of_scikit_learn(options: dict[str, Any]) -> None:
    texts = corpus()
    ours, theirs = TfidfVectorizer(**options), Oracle(**options)
    expected = theirs.fit_transform(texts)
    weights = ours.fit_transform(texts)
    assert ours.get_feature_names_out().tolist() == theirs.get_feature_names_out().tolist()
    assert weights.has_sorted_indices
    np.testing.assert_allclose(weights.toarray(), expected.toarray(), atol=1e-7)
    np.testing.assert_allclose(ours.idf_, theirs.idf_, rtol=1e-15)
    new = ["wörd1 wörd2 unseen word", "", "unseen"]
    np.testing.assert_allclose(ours.transform(new).toarray(), theirs.transform(new).toarray(), atol=1e-7)


def test_one_letter_words_count_where_they_are_asked_for() -> None:
    theirs = Oracle(token_pattern=r"(?u)\b\w+\b").fit(corpus())
    ours = TfidfVectorizer(min_token_length=1).fit(corpus())
    assert ours.get_feature_names_out().tolist() == theirs.get_feature_names_out().tolist()


@pytest.mark.parametrize("ngram_range", [(1, 1), (1, 2)])
def test_hashed_weights_are_those_of_scikit_learn(ngram_range: tuple[int, int]) -> None:
    texts = corpus()
    counts = HashingVectorizer(n_features=64, alternate_sign=False, norm=None, ngram_range=ngram_range).transform(texts)
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    ours = TfidfVectorizer(mode="hashed", n_hashed=64, sublinear_tf=True, ngram_range=ngram_range).fit_transform(texts)
    np.testing.assert_allclose(ours.toarray(), expected.toarray(), atol=1e-7)


def test_the_most_frequent_features_are_kept_and_ties_go_by_the_alphabet() -> None:
    texts = ["b b b a", "d c", "c d e"]
    assert TfidfVectorizer(min_token_length=1, max_features=2).fit(texts).vocabulary_.to_pylist() == ["b", "c"]
    assert TfidfVectorizer(min_token_length=1, max_features=3).fit(texts).vocabulary_.to_pylist() == ["b", "c", "d"]


@pytest.mark.parametrize("mode", ["exact", "hashed"])
@pytest.mark.parametrize("sizes", [[63], [20, 20, 23], [1] * 63, [0, 40, 0, 23]], ids=str)
def test_the_result_does_not_depend_on_how_documents_are_cut(mode: Any, sizes: list[int]) -> None:
    texts = corpus()
    options: dict[str, Any] = {"mode": mode, "ngram_range": (1, 2), "max_features": 40, "n_hashed": 256}
    whole = TfidfVectorizer(**options)
    expected = whole.fit_transform(texts)
    cut = TfidfVectorizer(**options)
    blocks = cut.fit_transform([pa.array(block, pa.string()) for block in blocks_of(texts, sizes)])
    assert [block.shape[0] for block in blocks] == sizes
    assert np.array_equal(sparse.vstack(blocks).toarray(), expected.toarray())
    assert cut.n_documents_ == whole.n_documents_ == 63
    assert np.array_equal(cut.document_frequency_, whole.document_frequency_)


@pytest.mark.parametrize("mode", ["exact", "hashed"])
def test_blocks_on_workers_give_what_blocks_in_memory_give(mode: Any) -> None:
    texts = corpus()
    options: dict[str, Any] = {"mode": mode, "min_df": 2, "n_hashed": 256}
    with threads(2) as client:
        futures = client.map(pa.array, blocks_of(texts, [20, 20, 23]))
        vectorizer = TfidfVectorizer(**options)
        weights = vectorizer.fit_transform(futures)
        found = sparse.vstack(client.gather(weights)).toarray()
        again = sparse.vstack(client.gather(vectorizer.transform(futures))).toarray()
    in_memory = TfidfVectorizer(**options)
    assert np.array_equal(found, in_memory.fit_transform(texts).toarray())
    for fitted in (vectorizer, in_memory):
        assert fitted.document_frequency_.dtype == np.int64
    assert np.array_equal(vectorizer.document_frequency_, in_memory.document_frequency_)
    assert np.array_equal(again, found)


def test_hashed_columns_are_named_by_their_most_frequent_term() -> None:
    texts = ["cat cat cat dog", "dog bird cat"]
    vectorizer = TfidfVectorizer(mode="hashed", n_hashed=1).fit(texts)
    assert vectorizer.feature_names(np.array([0]), texts).tolist() == ["cat"]
    wide = TfidfVectorizer(mode="hashed", n_hashed=2**20).fit(texts)
    columns = np.flatnonzero(wide.document_frequency_)
    assert sorted(wide.feature_names(columns, texts)) == ["bird", "cat", "dog"]
    for column, name in zip(columns, wide.feature_names(columns, texts), strict=True):
        assert wide.transform([name]).indices.tolist() == [column]


def test_names_of_columns_come_in_the_order_asked_for() -> None:
    vectorizer = TfidfVectorizer().fit(["aa bb cc"])
    assert vectorizer.feature_names(np.array([2, 0, 2]), []).tolist() == ["cc", "aa", "cc"]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["", " .. "], {}, "no word in any of 2 documents"),
        (["the", "the of"], {"stop_words": "english"}, "no word in any of 2 documents"),
        (["aa bb", "cc dd"], {"min_df": 2}, r"none of 4 terms is left; widen"),
        (["", "?"], {"mode": "hashed"}, "no word in any"),
    ],
)
def test_an_empty_vocabulary_is_an_error(texts: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmptyVocabularyError, match=message):
        TfidfVectorizer(**options).fit(texts)


def test_it_keeps_the_contract_of_scikit_learn() -> None:
    vectorizer = TfidfVectorizer(min_df=2, ngram_range=(1, 2))
    assert clone(vectorizer).get_params() == vectorizer.get_params()
    with pytest.raises(NotFittedError, match="call fit first"):
        vectorizer.transform(["text"])
