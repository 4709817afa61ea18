"""What a terminal would obey, and a reader would not see, is made visible wherever text leaves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from jobs.artifacts import FileRecord
from jobs.cli import outcome, submit_status, tables
from jobs.cli.progress import LogListener, TerminalListener
from jobs.errors import SpecError
from jobs.report import html
from jobs.report.sections import Bars, Curves, Images, Matrix, Note, Table
from jobs.visible import visible, visible_json, visible_lines
from tests.unit.test_report import MANIFEST, PNG

# Escape sequences, line breaks, bells, C1, directions, no width, tags, halves of characters; markup, emoji, formulas.
NASTY = (
    "a\x1b[2J\x1b]0;t\x07\r\nb\x9b31m\u202eevil\u2066\u200b\u2028\ufeff\U000e0041\ud800[red]x[/] :bomb: $x$ $\\frac$ "
)
HARMLESS = "Zürich, 東京, naïve, العربية, family 👨\u200d👩\u200d👧, a\u0301, क्\u200dष"


def is_plain(text: str) -> bool:
    """Whether text has nothing but what is seen, and line breaks."""
    return all(
        unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in "\n\u200c\u200d"
        for character in text
    )


def test_what_is_not_seen_is_written_as_its_code() -> None:
    assert visible(NASTY) == (
        r"a\x1b[2J\x1b]0;t\x07\r\nb\x9b31m\u202eevil\u2066\u200b\u2028\ufeff\U000e0041\ud800"
        r"[red]x[/] :bomb: $x$ $\frac$ "
    )
    assert visible(HARMLESS) == HARMLESS
    assert visible_lines("a\tb\n\x1bc") == "a\tb\n\\x1bc"


def test_every_character_that_is_not_seen_is_known() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        is_number_sign = unicodedata.category(character) == "Cf" and "\u0600" <= character < "\u1000"
        if character in "\u200c\u200d" or is_number_sign:
            continue  # joiners, without which words fall apart, and marks that Arabic and Syriac numbers begin with
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            assert visible(character) != character, hex(code)
        if unicodedata.bidirectional(character) in (
            "LRE",
            "RLE",
            "PDF",
            "LRO",
            "RLO",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
            "BN",
        ):
            assert visible(character) != character or code > 0xFFFF or code >= 0xFDD0, hex(code)


def test_json_means_the_same() -> None:
    document = {NASTY: [NASTY, HARMLESS, 1.5, None]}
    for indent in (None, 2):
        text = visible_json(document, indent)
        assert is_plain(text)
        assert json.loads(text) == document
    assert "東京" in visible_json(document)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400, force_terminal=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


NASTY_MANIFEST = MANIFEST.model_copy(
    update={
        "pipeline": NASTY,
        "metrics": {NASTY: NASTY, "accuracy": 0.5},
        "stages": [stage.model_copy(update={"name": NASTY}) for stage in MANIFEST.stages],
        "files": [FileRecord(name=name, url=NASTY, size=1, sha256="\x1b" * 20) for name in (NASTY, "report.html")],
        "versions": {NASTY: NASTY},
        "package_version": NASTY,
        "git_commit": "\x1b" * 40,
    }
)


def test_a_manifest_is_shown_without_what_a_terminal_obeys(console: Console) -> None:
    tables.run_summary(console, NASTY, NASTY_MANIFEST)
    tables.run_details(console, NASTY_MANIFEST)
    text = written(console)
    assert is_plain(text)
    assert text.count("[red]x[/] :bomb:") >= 8
    text.encode()


def test_progress_and_messages_are_shown_without_what_a_terminal_obeys(console: Console) -> None:
    for listener in (LogListener(console, clock=iter(range(0, 10_000, 60)).__next__), TerminalListener(console)):
        listener.stage_started(NASTY, 0, 1)
        listener.progress(NASTY, 1, 2, "rows")
        listener.stage_ended(NASTY, 1.0)
        listener.message(NASTY)
    text = written(console)
    assert is_plain(text)
    assert text.count("[red]x[/] :bomb:") >= 6


def test_the_status_of_a_job_is_shown_without_what_a_terminal_obeys(console: Console) -> None:
    status = {"metrics": {NASTY: NASTY}, "runUrl": NASTY}
    submit_status.summary(console, {"spec": {"pipeline": NASTY}, "status": status})
    assert is_plain(written(console))


def test_an_outcome_can_be_written_whatever_the_error_says() -> None:
    told = outcome.failure(SpecError(NASTY))
    assert is_plain(told["message"])
    document = json.loads(outcome.encoded({**told, "metrics": {NASTY: NASTY}}))
    assert document["message"] == told["message"]


SECTIONS = [
    Table(NASTY, [NASTY, "n"], [[NASTY, 1]]),
    Curves(NASTY, NASTY, NASTY, {NASTY: [(1, 2.0)], "_hidden": [(2, 1.0)], "": [(1, 1.0)]}),
    Matrix(NASTY, [NASTY, "b"], [[3, 1], [0, 0]], NASTY, NASTY),
    Bars(NASTY, [NASTY, "b"], [1.0, 2.0], NASTY),
    Images(NASTY, [(PNG, NASTY)]),
    Note(NASTY, NASTY),
]


def test_a_report_holds_nothing_that_is_not_seen() -> None:
    page = html.render(NASTY_MANIFEST, SECTIONS)
    assert is_plain(page)
    assert page.encode()
    assert page.count(":bomb: $x$ $\\frac$") >= 12
    assert "_hidden" in page


@pytest.mark.parametrize(
    "label",
    ["$", "$$", "$x$", "a$b$c", "\\$", "$\\frac$", "_", "_a", "", " ", "\n", "a\nb\nc", "\0", "%", "{x}", "^_{", "\\"],
)
def test_no_label_ends_a_finished_run(label: str) -> None:
    draw_and_check(label)


@pytest.mark.parametrize(
    "label",
    [
        "x" * 10_000,
        "東京",
        "العربية",
        "👨\u200d👩\u200d👧",
        "\ud800",
        "a\u0301" * 50,
        "<b>&amp;",
        "\u202e",
        "𝔘",
        "\uffff",
    ],
)
def test_no_writing_ends_a_finished_run(label: str) -> None:
    draw_and_check(label)


def draw_and_check(label: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = html.render(
            MANIFEST,
            [
                Curves("c", label, label, {label: [(1, 2.0), (2, 3.0)], "other": [(1, 1.0)]}),
                Matrix("m", [label, f"{label}2"], [[3, 1], [0, 0]], label, label),
                Bars("b", [label, label], [1.0, 2.0], label),
            ],
        )
    page.encode()
    if "$" in label:
        assert label in page


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_name_or_encoding_breaks_the_command_line(encoding: str, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    def daskyard(*arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, timeout=120, check=False)

    name = os.fsencode(tmp_path) + b"/\xff\x1b[31m\xe2\x80\xae.yaml"
    missing = daskyard("validate", name)
    assert (missing.returncode, missing.stdout) == (2, b"")
    assert b"\x1b" not in missing.stderr
    assert b"cannot be read" in missing.stderr
    Path(os.fsdecode(name)).write_text(
        'pipeline: kmeans\ninput: "東京\\u202e\\x1b.csv"\noutput: /tmp/out\n', encoding="utf-8"
    )
    for more in ([], ["--json"]):
        valid = daskyard("validate", name, *more)
        assert valid.returncode == 0, valid.stderr
        assert b"\x1b" not in valid.stdout
        assert "\u202e".encode() not in valid.stdout
        if more:
            assert json.loads(valid.stdout.decode(encoding))["input"]["url"] == "東京\u202e\x1b.csv"
