"""report.html is one file that needs no network and escapes what it shows."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from jobs.artifacts import InputRecord, Manifest, StageRecord
from jobs.report import html
from jobs.report.numbers import number
from jobs.report.sections import Bars, Curves, Images, Matrix, Note, Table

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
MANIFEST = Manifest(
    run_id="run-1",
    pipeline="text_mining",
    spec={"input": "<script>alert(1)</script>"},
    attempt="a",
    headline="accuracy",
    metrics={"accuracy": 0.91234, "n_documents": 12345, "note": "<b>"},
    n_rows=12345,
    n_workers=2,
    seed=7,
    seconds=12.3,
    started_at=NOW,
    committed_at=NOW,
    stages=[StageRecord(name="load", seconds=1.0), StageRecord(name="fit", seconds=2.5)],
    inputs=[InputRecord(url="s3://b/<i>.csv", size=10, etag="e")],
    files=[],
    package_version="0.1.0",
    git_commit="0" * 40,
    versions={"python": "3.11"},
)
SECTIONS = [
    Table("Terms <one>", ["term", "weight"], [["<script>", 0.123456], ["b", 2]]),
    Curves("Loss", "epoch", "loss", {"train": [(1, 2.0), (2, 1.0)], "test": [(1, 2.5), (2, 1.5)]}),
    Matrix("Confusion", ["cat", "dog & co"], [[3, 1], [0, 0]]),
    Bars("Sizes", ["a", "b"], [1.0, 2.0], unit="rows"),
    Images("Errors", [(PNG, "cat <dog>")]),
    Note("Remark", "a & b"),
]


@pytest.fixture(scope="module")
def page() -> str:
    return html.render(MANIFEST, SECTIONS)


def test_every_section_and_figure_stands_in_the_page(page: str) -> None:
    for text in ("0.9123", "12,345", "run-1", "Terms &lt;one&gt;", "dog &amp; co", "a &amp; b", "0.1235", "2.5 s"):
        assert text in page
    assert page.count("<svg") == 4  # curves, matrix, bars, timeline


def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert all(source.startswith("data:") for source in sources)
    assert "@import" not in page


def test_what_data_says_is_never_markup(page: str) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: set[str] = set()

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.found.add(tag)

    parser = Tags()
    parser.feed(page)
    assert "script" not in parser.found
    assert "dog" not in parser.found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (1234567, "1,234,567"),
        (12345.67, "12,345.7"),
        (3.0, "3"),
        ("x", "x"),
        (1e-7, "1e-07"),
        (True, "True"),
    ],
)
def test_figures_are_written_for_people(value: object, text: str) -> None:
    assert number(value) == text
