"""TF-IDF of documents that lie in blocks on Dask workers, or in memory. Called by the text_mining pipeline.

Two ways to number the columns. `exact`: the workers count, in how many documents each term occurs, merge their counts
in a tree, and the vocabulary is what is left within the limits. `hashed`: a term's column is its hash, so nothing but
document frequencies has to be merged; terms that share a column are not told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from jobs import sharing
from jobs.estimators.blocks import Runner, add, as_blocks, runner
from jobs.estimators.tfidf_kernels import counted, tally, weighed
from jobs.estimators.words import Words, murmur3, split


class EmptyVocabularyError(ValueError):
    """No term to make columns of."""


@dataclass(frozen=True)
class Analyzer:
    """How documents become terms; travels to the workers."""

    ngram_range: tuple[int, int]
    min_token_length: int
    stop_words: frozenset[str]
    n_hashed: int | None

    def words(self, documents: Any) -> Words:
        """Split documents into words, less the stop words."""
        words = split(documents, self.min_token_length)
        return words.without(self.stop_words) if self.stop_words else words


@dataclass(frozen=True)
class TermCounts:
    """How often each of a block's terms occurs in each of its documents.

    Attributes
    ----------
    matrix : csr_array of float32, shape (n_documents, n_terms)
        In each row a column stands once; in hashed mode columns are hashes.
    terms : pyarrow.Array or None
        What the columns are; None in hashed mode.
    """

    matrix: sparse.csr_array
    terms: pa.Array | None


class TfidfVectorizer(BaseEstimator):
    """Turn documents into rows of TF-IDF weights of unit length.

    Equal to scikit-learn's TfidfVectorizer with ``token_pattern=r"(?u)\\b\\w{m,}\\b"``, where m is `min_token_length`,
    but for a few letters whose lower case depends on their place in the word (the Greek sigma).

    Parameters
    ----------
    mode : {"exact", "hashed"}
        How columns are numbered.
    ngram_range : (1, 1), (1, 2) or (2, 2)
        Single words, words and pairs of neighbours, or pairs alone.
    min_token_length : int
        Characters that a word has at least.
    stop_words : None, "english" or a sequence of str
        Words to leave out; "english" is scikit-learn's list.
    min_df, max_df : int or float
        Documents in which a term occurs at least and at most: a count (int) or a share (float). In exact mode only.
    max_features : int, optional
        Keep so many terms that occur most often in all; of equally frequent ones the first in the alphabet.
    sublinear_tf : bool
        Weigh a term that occurs n times by 1 + ln n in place of n.
    n_hashed : int
        Columns in hashed mode.

    Attributes
    ----------
    vocabulary_ : pyarrow.Array of large_string, shape (n_features,)
        The terms in the order of their UTF-8 bytes; None in hashed mode.
    idf_ : ndarray of float64, shape (n_features,)
        ln((1 + n) / (1 + df)) + 1.
    document_frequency_ : ndarray of int64, shape (n_features,)
        Documents that hold the term.
    n_documents_ : int
        Documents that were fitted.

    Notes
    -----
    Documents are a list of str, a Series or an Arrow array; or a list of such blocks; or a list of futures of such
    blocks. The result is a csr_array of float32, or a list of them, or of futures of them. It does not depend on how
    the documents are cut into blocks.
    """

    def __init__(
        self,
        mode: Literal["exact", "hashed"] = "exact",
        ngram_range: tuple[int, int] = (1, 1),
        min_token_length: int = 2,
        stop_words: Literal["english"] | Sequence[str] | None = None,
        min_df: int | float = 1,
        max_df: int | float = 1.0,
        max_features: int | None = None,
        sublinear_tf: bool = False,
        n_hashed: int = 2**18,
    ) -> None:
        self.mode = mode
        self.ngram_range = ngram_range
        self.min_token_length = min_token_length
        self.stop_words = stop_words
        self.min_df = min_df
        self.max_df = max_df
        self.max_features = max_features
        self.sublinear_tf = sublinear_tf
        self.n_hashed = n_hashed

    @sharing.release_on_error()
    def fit(self, documents: Any, y: Any = None) -> TfidfVectorizer:
        """Learn vocabulary and document frequencies.

        Raises
        ------
        EmptyVocabularyError
            When there is no word, or no term is left within the limits.
        """
        self._fitted(as_blocks(documents), is_weighed=False)
        return self

    @sharing.release_on_error()
    def fit_transform(self, documents: Any, y: Any = None) -> Any:
        """Learn vocabulary and document frequencies; return the weights. Documents are split into words once."""
        return self._like(documents, self._fitted(as_blocks(documents), is_weighed=True))

    def transform(self, documents: Any) -> Any:
        """Return the weights of documents; terms that are not in the vocabulary are left out."""
        if not hasattr(self, "idf_"):
            raise NotFittedError("this TfidfVectorizer is not fitted; call fit first")
        blocks = as_blocks(documents)
        run = runner(blocks)
        counts = run.map(count_terms, blocks, analyzer=self.analyzer())
        return self._like(documents, self._weights(counts, run.share(self.idf_)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def analyzer(self) -> Analyzer:
        """Return how documents become terms."""
        if self.stop_words == "english":
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS as words
        else:
            words = frozenset(self.stop_words or ())
        n_hashed = self.n_hashed if self.mode == "hashed" else None
        return Analyzer((self.ngram_range[0], self.ngram_range[1]), self.min_token_length, frozenset(words), n_hashed)

    @sharing.release_on_error()
    def feature_names(self, columns: NDArray[np.integer[Any]], documents: Any) -> NDArray[np.object_]:
        """Return the terms of some columns.

        In hashed mode the documents are read again: a column's name is the term of it that occurs most often.
        """
        columns = np.asarray(columns)
        if self.mode == "exact":
            return np.asarray(self.vocabulary_.take(pa.array(columns)).to_pylist(), dtype=object)
        blocks = as_blocks(documents)
        run = runner(blocks)
        found = run.map(_terms_of_columns, blocks, analyzer=self.analyzer(), columns=run.share(np.unique(columns)))
        counts = run.total(_merge_terms, found).to_pandas()
        counts["column"] = column_of(pa.array(counts["term"], pa.large_string()), self.n_hashed)
        most = counts.sort_values(["count", "term"], ascending=[False, True]).drop_duplicates("column")
        return most.set_index("column")["term"].reindex(columns).fillna("").to_numpy(object)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of all columns; hashed ones are called #0, #1, …"""
        if self.mode == "hashed":
            return np.asarray([f"#{column}" for column in range(self.n_hashed)], dtype=object)
        return np.asarray(self.vocabulary_.to_pylist(), dtype=object)

    def _fitted(self, blocks: list[Any], is_weighed: bool) -> list[Any]:
        """Learn from blocks; return their weights, where they are, if they are wanted."""
        run = runner(blocks)
        counts = run.map(count_terms, blocks, analyzer=self.analyzer())
        if self.mode == "exact":
            self._learn_terms(run, counts)
            return self._weights(counts, run.share(self.idf_)) if is_weighed else []
        self.vocabulary_: pa.Array = None
        # By worker, and where the documents are: a column's number travels once from each, not once from each block.
        parts = run.few(_both, run.map(_hashed_frequencies, run.grouped(blocks, counts)[1]))
        # The weights wait for the sum, not for it to be seen here.
        weights = self._weights(counts, run.map(_idf_of, [parts])[0]) if is_weighed else []
        self.n_documents_, self.document_frequency_ = _sum(run.gather(parts))
        self._learn_idf()
        return weights

    def _learn_terms(self, run: Runner, counts: list[Any]) -> None:
        """Learn the vocabulary from counts of terms."""
        self.n_documents_ = run.total(add, run.map(_n_rows, counts))
        table = run.combined(_merge_terms, run.map(_frequencies, counts))
        limits = (self.min_df, self.max_df)
        at_least, at_most = (limit if isinstance(limit, int) else limit * self.n_documents_ for limit in limits)
        limited = run.map(_limited, [table], at_least=at_least, at_most=at_most, max_features=self.max_features)
        n_terms, (self.vocabulary_, self.document_frequency_) = run.gather(limited)[0]
        if n_terms and not len(self.vocabulary_):
            raise EmptyVocabularyError(
                f"min_df={self.min_df}, max_df={self.max_df}: none of {n_terms} terms is left; widen them"
            )
        self._learn_idf()

    def _learn_idf(self) -> None:
        if self.n_documents_ == 0 or not self.document_frequency_.any():
            raise EmptyVocabularyError(
                f"min_token_length={self.min_token_length}: no word in any of {self.n_documents_} documents; "
                "shorten it, or read other documents"
            )
        self.idf_: NDArray[np.float64] = _idf(self.n_documents_, self.document_frequency_)

    def _weights(self, counts: list[Any], idf: Any) -> list[Any]:
        run = runner(counts)
        return run.map(
            _weigh,
            counts,
            vocabulary=run.share(self.vocabulary_) if self.vocabulary_ is not None else None,
            idf=idf,
            sublinear_tf=self.sublinear_tf,
        )

    @staticmethod
    def _like(documents: Any, weights: list[Any]) -> Any:
        is_one = not isinstance(documents, (list, tuple)) or (len(documents) > 0 and isinstance(documents[0], str))
        return weights[0] if is_one else weights


def count_terms(documents: Any, analyzer: Analyzer) -> TermCounts:
    """Count the terms of one block of documents."""
    words = analyzer.words(documents)
    parts: list[tuple[NDArray[np.int32], NDArray[np.int64], pa.Array]] = []
    if analyzer.ngram_range[0] == 1:
        parts.append((words.ids, words.starts, words.terms))
    if analyzer.ngram_range[1] == 2:
        firsts, seconds, pair_starts = words.pairs()
        ids, pairs = pd.factorize(firsts.astype(np.int64) * max(len(words.terms), 1) + seconds)
        left, right = np.divmod(pairs, max(len(words.terms), 1))
        terms = joined(words.terms.take(pa.array(left)), words.terms.take(pa.array(right)))
        parts.append((ids.astype(np.int32), pair_starts, terms))
    matrices = [_counts(*part, analyzer.n_hashed) for part in parts]
    if analyzer.n_hashed is not None:
        return TermCounts(reduce(add, matrices), None)
    matrix = matrices[0] if len(matrices) == 1 else sparse.hstack(matrices, format="csr")
    return TermCounts(matrix, pa.concat_arrays([part[2] for part in parts]))


def _counts(
    ids: NDArray[np.int32], starts: NDArray[np.int64], terms: pa.Array, n_hashed: int | None
) -> sparse.csr_array:
    """Return how often each term is in each document; terms that share a column are added up."""
    columns = None if n_hashed is None else column_of(terms, n_hashed)
    n_columns = n_hashed or len(terms)
    return sparse.csr_array(counted(ids, starts, n_columns, columns), shape=(len(starts) - 1, n_columns))


def joined(left: pa.Array, right: pa.Array) -> pa.Array:
    """Return pairs of words with a space between."""
    return pc.binary_join_element_wise(left, right, pa.scalar(" ", pa.large_string()))


def column_of(terms: pa.Array, n_hashed: int) -> NDArray[np.int32]:
    """Return the columns that terms have in hashed mode."""
    return (np.abs(murmur3(terms).astype(np.int64)) % n_hashed).astype(np.int32)


def _n_rows(counts: TermCounts) -> int:
    return int(counts.matrix.shape[0])


# A number of documents, and in how many of them each column is.
_Frequencies = tuple[int, NDArray[np.integer[Any]]]


def _hashed_frequencies(counts: list[TermCounts]) -> _Frequencies:
    n_documents = sum(map(_n_rows, counts))
    # They travel, and four bytes hold as many documents as one task has.
    frequencies = np.zeros(counts[0].matrix.shape[1], np.int32)
    for each in counts:
        tally(each.matrix.indices, frequencies)
    return n_documents, frequencies


def _both(left: _Frequencies, right: _Frequencies) -> _Frequencies:
    return left[0] + right[0], np.add(left[1], right[1], dtype=np.int64)


def _sum(parts: list[_Frequencies]) -> tuple[int, NDArray[np.int64]]:
    n_documents, frequencies = reduce(_both, parts)
    return n_documents, frequencies.astype(np.int64, copy=False)


def _idf(n_documents: int, df: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return ln((1 + n) / (1 + df)) + 1 of the number of documents and document frequencies."""
    return np.asarray(np.log((1 + n_documents) / (1 + df)) + 1)


def _idf_of(parts: list[_Frequencies]) -> NDArray[np.float64]:
    return _idf(*_sum(parts))


def _frequencies(counts: TermCounts) -> pa.Table:
    """Return for each term of a block in how many documents it is (df) and how often (count)."""
    matrix = counts.matrix
    df = np.bincount(matrix.indices, minlength=matrix.shape[1])
    count = np.bincount(matrix.indices, weights=matrix.data, minlength=matrix.shape[1]).astype(np.int64)
    return pa.table({"term": counts.terms, "df": df, "count": count})


def _limited(
    table: pa.Table, at_least: float, at_most: float, max_features: int | None
) -> tuple[int, tuple[pa.Array, NDArray[np.int64]]]:
    """Return the number of terms, and those within the limits with their document frequencies, in order."""
    df = table["df"].to_numpy()
    # A stop word stands among the terms although it occurs nowhere.
    kept = table.filter(pa.array((df >= max(at_least, 1)) & (df <= at_most)))
    if max_features is not None and len(kept) > max_features:
        kept = kept.sort_by([("count", "descending"), ("term", "ascending")]).slice(0, max_features)
    kept = kept.sort_by("term").combine_chunks()
    terms = kept["term"].chunk(0) if len(kept) else pa.array([], pa.large_string())
    return int(np.count_nonzero(df)), (terms, kept["df"].to_numpy())


def _merge_terms(left: pa.Table, right: pa.Table) -> pa.Table:
    """Add up the counts of terms in two tables."""
    both = pa.concat_tables([left, right]).combine_chunks()
    if not len(both):
        return both
    terms = both["term"].chunk(0).dictionary_encode()
    which = terms.indices.to_numpy()
    sums = {
        name: np.bincount(which, weights=both[name].to_numpy()).astype(np.int64)
        for name in both.column_names
        if name != "term"
    }
    return pa.table({"term": terms.dictionary} | sums)


def _terms_of_columns(documents: Any, analyzer: Analyzer, columns: NDArray[Any]) -> pa.Table:
    counts = count_terms(documents, replace(analyzer, n_hashed=None))
    is_asked = np.isin(column_of(counts.terms, analyzer.n_hashed or 1), columns)
    return _frequencies(counts).filter(pa.array(is_asked))


def _weigh(
    counts: TermCounts, vocabulary: pa.Array | None, idf: NDArray[np.float64], sublinear_tf: bool
) -> sparse.csr_array:
    """Turn a block's counts into TF-IDF weights with columns in order."""
    matrix = counts.matrix
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    if vocabulary is not None:
        columns = pc.fill_null(pc.index_in(counts.terms, vocabulary), -1).to_numpy()
        known = columns[indices]
        is_known = known >= 0
        indptr = np.concatenate(([0], np.cumsum(is_known)))[indptr]
        data, indices = data[is_known], known[is_known].astype(np.int32)
    weights = sparse.csr_array(
        (
            weighed(data, indices, indptr, idf, sublinear_tf),
            indices,
            indptr.astype(np.int32 if len(data) < 2**31 else np.int64, copy=False),
        ),
        shape=(len(indptr) - 1, len(idf)),
    )
    weights.sort_indices()
    return weights
