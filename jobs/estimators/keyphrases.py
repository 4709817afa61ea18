"""Pairs of neighbouring words that stand for a group of documents: a class, or a topic.

A phrase is scored by NPMI · n_g · n_g / n: how much more often its words are neighbours than chance would have it, in
how many documents of the group it stands, and which share of all documents with it they are. Counts are of documents,
so that one that repeats itself has no more say. Called by the text_mining pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs import sharing
from jobs.estimators.blocks import runner
from jobs.estimators.tfidf import Analyzer, TfidfVectorizer, column_of
from jobs.estimators.tfidf_kernels import counted

_FEWEST_DOCUMENTS = 3


@dataclass(frozen=True)
class Keyphrase:
    """A phrase of a group, with its score and the group's documents that hold it."""

    phrase: str
    score: float
    n_documents: int


@dataclass(frozen=True)
class _PairCounts:
    """Documents that hold a pair of columns, by group. Keys: (first · n_columns + second) · n_groups + group."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]


@sharing.release_on_error()
def keyphrases(
    documents: list[Any], groups: list[Any], n_groups: int, vectorizer: TfidfVectorizer, n_best: int
) -> list[list[Keyphrase]]:
    """Return the best phrases of each group.

    Parameters
    ----------
    documents, groups : list of blocks or of futures
        Texts, and the group of each, a number from 0 to `n_groups` - 1.
    n_groups : int
        Groups.
    vectorizer : TfidfVectorizer
        Fitted to these documents; phrases are made of single words that it knows.
    n_best : int
        Phrases a group at most. Each stands in three documents of the group or more.
    """
    run = runner(documents)
    frequency = vectorizer.document_frequency_
    analyzer = replace(vectorizer.analyzer(), ngram_range=(2, 2))
    counts = run.map(
        _count_pairs,
        documents,
        groups,
        analyzer=analyzer,
        vocabulary=run.share(vectorizer.vocabulary_) if vectorizer.mode == "exact" else None,
        n_columns=len(frequency),
        n_groups=n_groups,
    )
    best = run.map(
        _best_pairs,
        [run.combined(_merge, counts)],
        frequency=run.share(frequency),
        n_documents=vectorizer.n_documents_,
        n_groups=n_groups,
        n_best=n_best,
    )
    found: pd.DataFrame = run.gather(best)[0]
    names = vectorizer.feature_names(found[["first", "second"]].to_numpy().ravel(), documents).reshape(-1, 2)
    best_of: list[list[Keyphrase]] = [[] for _ in range(n_groups)]
    for (first, second), group, score, n in zip(names, found["group"], found["score"], found["n"], strict=True):
        best_of[group].append(Keyphrase(f"{first} {second}", float(score), int(n)))
    return best_of


def _count_pairs(
    documents: Any, groups: Any, analyzer: Analyzer, vocabulary: pa.Array | None, n_columns: int, n_groups: int
) -> _PairCounts:
    words = analyzer.words(documents)
    if vocabulary is None:
        columns = column_of(words.terms, n_columns).astype(np.int64)
    else:
        columns = pc.fill_null(pc.index_in(words.terms, vocabulary), -1).to_numpy().astype(np.int64)
    firsts, seconds, starts = words.pairs()
    left, right = columns[firsts], columns[seconds]
    is_known = (left >= 0) & (right >= 0) & (left != right)
    starts = np.concatenate(([0], np.cumsum(is_known)))[starts]
    ids, pairs = pd.factorize(left[is_known] * n_columns + right[is_known])
    _, indices, ends = counted(ids.astype(np.int32), starts, len(pairs))
    group_of = np.repeat(np.asarray(groups), np.diff(ends))
    keys, counts = np.unique(pairs[indices] * n_groups + group_of, return_counts=True)
    return _PairCounts(keys, counts)


def _merge(left: _PairCounts, right: _PairCounts) -> _PairCounts:
    keys, inverse = np.unique(np.concatenate([left.keys, right.keys]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, inverse, np.concatenate([left.counts, right.counts]))
    return _PairCounts(keys, counts)


def _best_pairs(
    pairs: _PairCounts, frequency: NDArray[np.int64], n_documents: int, n_groups: int, n_best: int
) -> pd.DataFrame:
    """Score all pairs, and return the best of each group."""
    pair, group = np.divmod(pairs.keys, n_groups)
    _, inverse = np.unique(pair, return_inverse=True)
    in_all = np.bincount(inverse, weights=pairs.counts)[inverse] if len(inverse) else np.empty(0)
    first, second = np.divmod(pair, len(frequency))
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(in_all * n_documents / (frequency[first] * frequency[second].astype(float)))
        normalised = np.where(in_all < n_documents, information / -np.log(in_all / n_documents), 1.0)
    score = np.clip(normalised, 0, 1) * pairs.counts**2 / in_all
    table = pd.DataFrame({"group": group, "first": first, "second": second, "n": pairs.counts, "score": score})
    table = table[(table["n"] >= _FEWEST_DOCUMENTS) & (table["score"] > 0)]
    table = table.sort_values(["group", "score", "first", "second"], ascending=[True, False, True, True])
    return table.groupby("group").head(n_best).reset_index(drop=True)
