"""How well the top terms of topics go together: mean NPMI of their pairs over documents.

Bouma: Normalized (pointwise) mutual information in collocation extraction, GSCL 2009. Called by text_mining.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from jobs import sharing
from jobs.estimators.blocks import add, runner


@sharing.release_on_error()
def topic_coherence(X: list[Any], top_columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean NPMI of each topic's pairs of top terms, from -1 (never together) to 1 (always).

    Parameters
    ----------
    X : list of sparse matrices or of futures of them
        Documents by terms; a term occurs where it is not zero.
    top_columns : ndarray, shape (n_topics, n_top)
        Columns of each topic's top terms.
    """
    run = runner(X)
    columns, inverse = np.unique(top_columns, return_inverse=True)
    n_documents, together = run.total(add, run.map(_occurrences, X, columns=run.share(columns)))
    alone = np.diag(together)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(together * n_documents / np.outer(alone, alone))
        npmi = np.where(together == n_documents, 1.0, information / -np.log(together / n_documents))
    npmi = np.where(together > 0, npmi, -1.0)
    upper = np.triu_indices(top_columns.shape[1], 1)
    return np.asarray([npmi[np.ix_(rows, rows)][upper].mean() for rows in inverse.reshape(top_columns.shape)])


def _occurrences(x: sparse.csr_array, columns: NDArray[np.intp]) -> tuple[int, NDArray[np.float64]]:
    occurs = (x[:, columns] > 0).astype(np.float64)
    return x.shape[0], (occurs.T @ occurs).toarray()
