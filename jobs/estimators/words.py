"""Splits documents into words and numbers the words: the hot path of everything that reads text.

A word is a maximal run of letters, digits and underscores (Unicode, as Python's ``\\w``) of at least
`min_token_length` characters, in lower case. One pass over the bytes finds the words and looks each up in a hash
table; no Python object is made for a word. Kernels are compiled on first use, and release the GIL.
Called by `jobs.estimators.tfidf` and `jobs.estimators.keyphrases`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.estimators.compiled import IS_CACHED

_compiled = numba.njit(nogil=True, error_model="numpy", cache=IS_CACHED)

# FNV-1a, 64 bits: http://www.isthe.com/chongo/tech/comp/fnv/
_FNV_START = np.uint64(14695981039346656037)
_FNV_PRIME = np.uint64(1099511628211)


@dataclass(frozen=True)
class Words:
    """The words of a block of documents, in order.

    Attributes
    ----------
    ids : ndarray of int32, shape (n_words,)
        Which of `terms` each word is.
    starts : ndarray of int64, shape (n_documents + 1,)
        Where the words of each document begin in `ids`.
    terms : pyarrow.Array of large_string, shape (n_terms,)
        The distinct words, in the order in which they first appear.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    terms: pa.Array

    def without(self, stop_words: frozenset[str]) -> Words:
        """Leave out some words, as if they were not in the documents; `terms` stay."""
        is_kept = ~pc.is_in(self.terms, pa.array(sorted(stop_words), self.terms.type)).to_numpy(zero_copy_only=False)
        kept = is_kept[self.ids]
        n_before = np.concatenate(([0], np.cumsum(kept)))
        return Words(self.ids[kept], n_before[self.starts], self.terms)

    def pairs(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Return first ids, second ids and starts by document of all neighbours within a document."""
        is_pair = np.ones(max(len(self.ids) - 1, 0), bool)
        ends = self.starts[1:-1]
        is_pair[ends[(ends > 0) & (ends < len(self.ids))] - 1] = False
        n_before = np.concatenate(([0], np.cumsum(is_pair), [is_pair.sum()]))[: len(self.ids) + 1]
        return self.ids[:-1][is_pair], self.ids[1:][is_pair], n_before[self.starts]


def as_strings(documents: Any) -> pa.Array:
    """Return documents (a list, a Series, an Arrow array) as one Arrow array of large_string."""
    if not isinstance(documents, (pa.Array, pa.ChunkedArray)):
        documents = pa.array(documents, pa.large_string(), from_pandas=True)
    strings = documents.cast(pa.large_string())
    if isinstance(strings, pa.ChunkedArray):
        return pa.concat_arrays(strings.chunks) if strings.num_chunks else pa.array([], pa.large_string())
    return strings


def split(documents: Any, min_token_length: int = 2) -> Words:
    """Split documents into words.

    Parameters
    ----------
    documents : list of str, Series or pyarrow.Array, shape (n_documents,)
        A missing document is an empty one.
    min_token_length : int
        Shorter words, counted in characters, are left out.
    """
    lowered = pc.utf8_lower(pc.fill_null(as_strings(documents), ""))
    n_rows = len(lowered)
    if n_rows == 0:
        return Words(np.empty(0, np.int32), np.zeros(1, np.int64), pa.array([], pa.large_string()))
    _, offsets_buffer, data_buffer = lowered.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[lowered.offset : lowered.offset + n_rows + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
    ids, starts, term_starts, term_ends = _split(data, offsets, _word_characters(), min_token_length)
    return Words(ids, starts, _gather_terms(data, term_starts, term_ends))


def murmur3(terms: pa.Array) -> NDArray[np.int32]:
    """Hash strings to 32 bits: MurmurHash3_x86_32 with seed 0, the hash of scikit-learn's HashingVectorizer."""
    strings = as_strings(terms)
    if len(strings) == 0:
        return np.empty(0, np.int32)
    _, offsets, data = strings.buffers()
    bounds = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    return _murmur3(np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), bounds).view(np.int32)


@cache
def _word_characters() -> NDArray[np.bool_]:
    """Say for each code point whether words are made of it; 1.1 MB, 0.1 s, once a process."""
    is_word = np.zeros(0x110000, np.bool_)
    is_word[[code for code in range(0x110000) if chr(code).isalnum() or code == ord("_")]] = True
    return is_word


def _gather_terms(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(ends - starts)))
    gathered = _copied(data, starts, offsets)
    return pa.LargeStringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(gathered))


@_compiled
def _copied(data: Any, starts: Any, offsets: Any) -> Any:
    out = np.empty(offsets[-1], np.uint8)
    for term in range(len(starts)):
        for i in range(offsets[term + 1] - offsets[term]):
            out[offsets[term] + i] = data[starts[term] + i]
    return out


@_compiled
def _decoded(data: Any, at: int) -> tuple[int, int]:
    """Return the code point of the UTF-8 sequence of two to four bytes at `at`, and where the next one begins."""
    lead = np.int64(data[at])
    if lead >= 0xF0:
        tail = (data[at + 1] & 63) << 12 | (data[at + 2] & 63) << 6 | data[at + 3] & 63
        return (lead & 7) << 18 | tail, at + 4
    if lead >= 0xE0:
        return (lead & 15) << 12 | (data[at + 1] & 63) << 6 | data[at + 2] & 63, at + 3
    return (lead & 31) << 6 | data[at + 1] & 63, at + 2


@_compiled
def _scanned(data: Any, at: int, end: int, is_word: Any, min_length: int, starts: Any, ends: Any, hashes: Any) -> int:
    """Find the words in ``data[at:end]``: fill in where each starts and ends, and its hash; return how many."""
    n_words = 0
    start = at
    length = 0
    hashed = _FNV_START
    while at < end:
        code = np.int64(data[at])
        after = at + 1
        if code >= 0x80:
            code, after = _decoded(data, at)
        if is_word[code]:
            for i in range(at, after):
                hashed = (hashed ^ np.uint64(data[i])) * _FNV_PRIME
            length += 1
        else:
            if length >= min_length:
                starts[n_words], ends[n_words], hashes[n_words] = start, at, hashed
                n_words += 1
            start = after
            length = 0
            hashed = _FNV_START
        at = after
    if length >= min_length:
        starts[n_words], ends[n_words], hashes[n_words] = start, end, hashed
        n_words += 1
    return n_words


@_compiled
def _numbered(
    data: Any,
    starts: Any,
    ends: Any,
    hashes: Any,
    slots: Any,
    term_hashes: Any,
    term_starts: Any,
    term_ends: Any,
    n_terms: int,
    out: Any,
) -> int:
    """Look up one document's words, add those that are new, fill in their numbers; return how many there are now.

    A function of its own, with arrays that nothing replaces, because numba would otherwise count references to them
    at each word, which takes several times as long as the work itself.
    """
    mask = len(slots) - 1
    for word in range(len(out)):
        start, length, hashed = starts[word], ends[word] - starts[word], hashes[word]
        slot = _first_slot(hashed, mask)
        while True:
            term = slots[slot]
            if term < 0:
                slots[slot] = term = n_terms
                term_hashes[term], term_starts[term], term_ends[term] = hashed, start, ends[word]
                n_terms += 1
                break
            if term_hashes[term] == hashed and term_ends[term] - term_starts[term] == length:
                is_same = True
                for i in range(length):
                    is_same &= data[term_starts[term] + i] == data[start + i]
                if is_same:
                    break
            slot = (slot + 1) & mask
        out[word] = term
    return n_terms


@_compiled
def _first_slot(hashed: Any, mask: int) -> Any:
    return np.int64(hashed ^ hashed >> np.uint64(29)) & mask


@_compiled
def _grown(array: Any) -> Any:
    """Return an array of twice the length that begins with this one."""
    out = np.empty(2 * len(array), array.dtype)
    out[: len(array)] = array
    return out


@_compiled
def _rehashed(hashes: Any, n_terms: int) -> Any:
    """Make a table of twice as many slots as `hashes` has places, with the first `n_terms` in it."""
    slots = np.full(2 * len(hashes), -1, np.int32)
    mask = len(slots) - 1
    for term in range(n_terms):
        slot = _first_slot(hashes[term], mask)
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = term
    return slots


@_compiled
def _split(data: Any, offsets: Any, is_word: Any, min_length: int) -> Any:
    """Return word ids, starts by row, and where each distinct word starts and ends in `data`."""
    n_rows = len(offsets) - 1
    # A word and what follows it are six bytes in English; where they are less, there will be more room.
    ids = np.empty((offsets[-1] - offsets[0]) // 5 + 1, np.int32)
    row_starts = np.zeros(n_rows + 1, np.int64)
    longest = 0
    for row in range(n_rows):
        longest = max(longest, offsets[row + 1] - offsets[row])
    starts = np.empty(longest // 2 + 1, np.int64)
    ends = np.empty(longest // 2 + 1, np.int64)
    hashes = np.empty(longest // 2 + 1, np.uint64)
    slots = np.full(1 << 12, -1, np.int32)
    term_hashes = np.empty(1 << 11, np.uint64)
    term_starts = np.empty(1 << 11, np.int64)
    term_ends = np.empty(1 << 11, np.int64)
    n_terms = 0
    for row in range(n_rows):
        n_words = _scanned(data, offsets[row], offsets[row + 1], is_word, min_length, starts, ends, hashes)
        while n_terms + n_words > len(term_hashes):
            term_hashes, term_starts, term_ends = _grown(term_hashes), _grown(term_starts), _grown(term_ends)
            slots = _rehashed(term_hashes, n_terms)
        row_starts[row + 1] = row_starts[row] + n_words
        while row_starts[row + 1] > len(ids):
            ids = _grown(ids)
        row_ids = ids[row_starts[row] : row_starts[row + 1]]
        n_terms = _numbered(data, starts, ends, hashes, slots, term_hashes, term_starts, term_ends, n_terms, row_ids)
    return ids[: row_starts[-1]], row_starts, term_starts[:n_terms].copy(), term_ends[:n_terms].copy()


@_compiled
def _murmur3(data: Any, offsets: Any) -> Any:
    """MurmurHash3_x86_32 (Austin Appleby, public domain) of each string, seed 0."""
    out = np.empty(len(offsets) - 1, np.uint32)
    for row in range(len(out)):
        start = offsets[row]
        length = offsets[row + 1] - start
        h = np.uint64(0)
        for block in range(length // 4):
            at = start + 4 * block
            k = np.uint64(data[at]) | np.uint64(data[at + 1]) << 8 | np.uint64(data[at + 2]) << 16
            k = _scrambled(k | np.uint64(data[at + 3]) << 24)
            h = _rotated(h ^ k, 13)
            h = (h * np.uint64(5) + np.uint64(0xE6546B64)) & np.uint64(0xFFFFFFFF)
        k = np.uint64(0)
        for i in range(length % 4):
            k |= np.uint64(data[start + length // 4 * 4 + i]) << (8 * i)
        h ^= _scrambled(k) ^ np.uint64(length)
        h = (h ^ h >> 16) * np.uint64(0x85EBCA6B) & np.uint64(0xFFFFFFFF)
        h = (h ^ h >> 13) * np.uint64(0xC2B2AE35) & np.uint64(0xFFFFFFFF)
        out[row] = h ^ h >> 16
    return out


@_compiled
def _rotated(value: Any, n_bits: int) -> Any:
    return (value << n_bits | value >> (32 - n_bits)) & np.uint64(0xFFFFFFFF)


@_compiled
def _scrambled(k: Any) -> Any:
    k = k * np.uint64(0xCC9E2D51) & np.uint64(0xFFFFFFFF)
    return _rotated(k, 15) * np.uint64(0x1B873593) & np.uint64(0xFFFFFFFF)
