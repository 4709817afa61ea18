"""What workers write in parts has columns of the same types where a part has no rows."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from safetensors.torch import save

from jobs import storage
from jobs.estimators.keyphrases import Keyphrase
from jobs.pipelines import group_by_tasks as group_by
from jobs.pipelines import kmeans_tasks, neural_network, recommender_tasks, tabular_tasks
from jobs.pipelines import text_mining_report as report
from jobs.pipelines import text_mining_tasks as text_mining

IDS = {"text": np.array(["a", "b", "c"], dtype=object), "whole": np.array([1, 2, 3])}


def recommendations(kind: str, n: int, folder: str) -> pa.Table:
    known = scipy.sparse.csr_matrix(np.zeros((1, 3)) if n else np.ones((1, 3)))
    nothing = scipy.sparse.csr_matrix((1, 3))
    users, items = np.ones((1, 2)), np.ones((3, 2))
    return recommender_tasks.recommendations(users, items, known, nothing, IDS[kind], IDS[kind], (0, 3), n or 1, 0.0)


def factors(kind: str, n: int, folder: str) -> pa.Table:
    return recommender_tasks.factors(np.ones((n, 3)), IDS[kind][:n], (0, 1), 2, 2)


def rows_of_table(columns: Callable[..., Any], n: int, folder: str, *args: Any) -> str:
    tabular_tasks.write(np.ones((n, 2)), np.zeros(n), np.arange(n), f"{folder}/a", columns, args)
    return f"{folder}/a"


def class_predictions(n: int, folder: str) -> str:
    network = neural_network.Network(2, (3,), ("no", "yes"), 0.0, 1.0)
    storage.write_bytes(f"{folder}/weights", save(network.make().state_dict()))
    return rows_of_table(neural_network._predictions, n, folder, network, f"{folder}/weights")


def text_predictions(n: int, folder: str) -> str:
    zeros = np.zeros(n, np.int64)
    text_mining.predictions(f"{folder}/a", np.arange(n), zeros, np.ones(n), ["no", "yes"], np.array([0, 1]))
    return f"{folder}/a"


def topics(n: int, folder: str) -> str:
    text_mining.document_topics(f"{folder}/a", np.arange(n), np.ones((n, 2)))
    return f"{folder}/a"


def groups(n: int, folder: str) -> pa.Table:
    keys = {"word": pa.array(["a", None]), "number": pa.array([1.5, 2.0]), "n_rows": pa.array([1, 2])}
    table = pa.table(keys).slice(0, n)
    of_one = group_by.Size(n, 1, 3, 0, 0, (False, False))
    pieces = group_by.cut((table, of_one), ["word", "number"], 64)
    chosen = [piece for piece in pieces if bool(piece[1].n_groups) == bool(n)][:1]
    return group_by.finished(group_by.merged(chosen, ["word", "number"]), ["word", "number"], {}, {}, (False, False))


def report_groups(n: int) -> list[report.Group]:
    return [report.Group("a", [("term", 1.0)] * n, [Keyphrase("two terms", 1.0, 2)] * n)]


MAKERS: dict[str, Callable[[int, str], pa.Table | str]] = {
    "recommendations with text ids": lambda n, folder: recommendations("text", n, folder),
    "recommendations with integer ids": lambda n, folder: recommendations("whole", n, folder),
    "factors with text ids": lambda n, folder: factors("text", n, folder),
    "factors with integer ids": lambda n, folder: factors("whole", n, folder),
    "clusters": lambda n, folder: rows_of_table(kmeans_tasks.assignments, n, folder, np.ones((2, 2))),
    "a line's predictions": lambda n, folder: rows_of_table(tabular_tasks.line_predictions, n, folder, np.ones(2), 0.0),
    "a network's classes": class_predictions,
    "classes of documents": text_predictions,
    "topics of documents": topics,
    "groups": groups,
    "terms": lambda n, folder: report.term_rows("topic", report_groups(n)),
    "keyphrases": lambda n, folder: report.phrase_rows("topic", report_groups(n)),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_part_without_rows_has_the_columns_of_one_with_rows(maker: str, tmp_path: Path) -> None:
    tables = []
    for n in (0, 1):
        made = MAKERS[maker](n, str(tmp_path / str(n)))
        table = pq.read_table(io.BytesIO(storage.read_bytes(made))) if isinstance(made, str) else made
        assert bool(table.num_rows) == bool(n)
        tables.append(table)
    assert tables[0].schema.equals(tables[1].schema)
    assert not any(pa.types.is_null(type) for type in tables[0].schema.types)
