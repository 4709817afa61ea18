import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.utils import murmurhash3_32

from jobs.estimators.words import Words, as_strings, murmur3, split

TRICKY = [
    "Plain words, and MORE words.",
    "Größe, éé! naïve_x1 — 日本語 テキスト; Ünïcödé\u2009space",
    "",
    "a I x",
    "emoji 😀word😀 𝒳𝒴 tail",
    "no end",
    "___ under_score 42 3.14",
    "trailing space ",
    "\n\t\r",
]


def words_of(words: Words) -> list[list[str]]:
    terms = words.terms.to_pylist()
    return [[terms[i] for i in words.ids[a:b]] for a, b in zip(words.starts, words.starts[1:], strict=False)]


@pytest.mark.parametrize("min_length", [1, 2, 3])
def test_words_are_those_of_a_regular_expression(min_length: int) -> None:
    pattern = re.compile(rf"(?u)\b\w{{{min_length},}}\b")
    assert words_of(split(TRICKY, min_length)) == [pattern.findall(text.lower()) for text in TRICKY]


def test_words_are_right_where_there_are_more_of_them_than_the_table_holds_at_first() -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 20_000, 300)) for _ in range(100)]
    words = split(texts)
    assert words_of(words) == [text.split() for text in texts]
    assert len(set(words.terms.to_pylist())) == len(words.terms) > 10_000


@pytest.mark.parametrize(
    "documents",
    [["b A", None], pd.Series(["b A", None]), pa.array(["b A", None]), pa.chunked_array([["b A"], [None]])],
    ids=["list", "series", "array", "chunks"],
)
def test_documents_come_as_list_series_or_arrow_and_a_missing_one_is_empty(documents: object) -> None:
    assert words_of(split(documents, 1)) == [["b", "a"], []]


def test_a_slice_of_an_array_is_split_as_a_copy_of_it_is() -> None:
    assert words_of(split(pa.array(TRICKY)[2:7], 1)) == words_of(split(TRICKY[2:7], 1))


def test_no_documents_have_no_words() -> None:
    words = split(pa.chunked_array([], pa.string()))
    assert len(words.ids) == len(words.terms) == 0
    assert words.starts.tolist() == [0]


def test_words_left_out_are_as_if_they_had_not_been_there() -> None:
    words = split(["the cat the dog", "the", "a dog"], 1).without(frozenset({"the", "unknown"}))
    assert words_of(words) == [["cat", "dog"], [], ["a", "dog"]]


def test_pairs_are_neighbours_within_a_document() -> None:
    words = split(["", "a b c", "d", "", "e f", ""], 1)
    firsts, seconds, starts = words.pairs()
    terms = words.terms.to_pylist()
    assert [(terms[a], terms[b]) for a, b in zip(firsts, seconds, strict=True)] == [("a", "b"), ("b", "c"), ("e", "f")]
    assert starts.tolist() == [0, 0, 2, 2, 2, 3, 3]


def test_the_hash_is_murmur3_of_scikit_learn() -> None:
    terms = ["abcdefghi"[:length] for length in range(10)] + ["größe", "日本語", "\U0001f600"]
    assert murmur3(pa.array(terms)).tolist() == [murmurhash3_32(term, seed=0) for term in terms]
    assert murmur3(pa.array(terms)[3:]).tolist() == [murmurhash3_32(term, seed=0) for term in terms[3:]]


def test_strings_of_any_arrow_type_become_large_strings() -> None:
    for type_ in (pa.string(), pa.large_string(), pa.string_view()):
        assert as_strings(pa.array(["x", "y"], type_)).equals(pa.array(["x", "y"], pa.large_string()))
