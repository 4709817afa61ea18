"""What the watcher of a run sees: bars on a terminal, lines elsewhere."""

import io
import logging

import pytest
from rich.console import Console

from jobs.cli import progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pace_is_units_a_second_and_time_left_follows():
    clock = Clock()
    pace = progress.Pace(clock)
    pace.update(0)
    assert pace.rate() is None
    clock.now = 4.0
    pace.update(200)
    assert pace.rate() == pytest.approx(50.0)
    assert pace.left_s(1000) == pytest.approx(16.0)


def test_pace_forgets_what_is_older_than_half_a_minute():
    clock = Clock()
    pace = progress.Pace(clock)
    for second in range(100):
        clock.now = float(second)
        pace.update(second if second < 50 else 50 + (second - 50) * 10)
    assert pace.rate() == pytest.approx(10.0)


def test_pace_begins_again_where_the_count_does():
    clock = Clock()
    pace = progress.Pace(clock)
    pace.update(900)
    clock.now = 1.0
    pace.update(10)
    assert pace.rate() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (7260, "2:01 h")],
)
def test_durations_read_well(seconds, text):
    assert progress.duration(seconds) == text


def test_without_a_terminal_a_stage_is_a_few_lines_however_often_it_reports():
    clock = Clock()
    output = io.StringIO()
    listener = progress.LogListener(Console(file=output, width=80), clock)
    listener.stage_started("fit", 2, 5)
    for done in range(1001):
        clock.now = done / 100
        listener.progress("fit", done, 1000, "images")
    listener.stage_ended("fit", 10.0)
    lines = [line.split(" ", 1)[1] for line in output.getvalue().splitlines()]
    assert lines == [
        "3/5 fit",
        "3/5 fit: 50 %, 500 of 1,000 images, 100 images/s, 5.0 s left",
        "3/5 fit: 100 %, 1,000 of 1,000 images, 100 images/s, 0.0 s left",
        "3/5 fit took 10 s",
    ]


def test_a_download_before_any_stage_has_a_pace_of_its_own():
    clock = Clock()
    output = io.StringIO()
    listener = progress.LogListener(Console(file=output), clock)
    for second in range(50, 70):
        clock.now = float(second)
        listener.progress("download", second - 50, 100, "MB")
    lines = [line.split(" ", 1)[1] for line in output.getvalue().splitlines()]
    assert lines[0] == "download: 5 %, 5 of 100 MB, 1 MB/s, 1:35 min left"
    assert len(lines) == 3


def test_on_a_terminal_ended_stages_stay_as_lines_within_80_columns():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system=None)
    with progress.watching(console) as listener:
        listener.message("[not] markup")
        listener.stage_started("evaluate", 3, 5)
        listener.progress("evaluate", 12_345_678, 98_765_432, "micro-batches")
        listener.stage_ended("evaluate", 1.5)
        # A download has no stage around it.
        listener.progress("download", 1, 2, "MB")
        listener.progress("download", 2, 2, "MB")
    text = output.getvalue()
    assert "[not] markup" in text
    assert "(4/5) evaluate 1.5 s" in text


def test_log_records_of_a_pipeline_reach_the_watcher_and_handlers_are_removed():
    logger = logging.getLogger("daskyard")
    before = list(logger.handlers), logger.level, logger.propagate
    output = io.StringIO()
    with progress.watching(Console(file=output)):
        logging.getLogger("daskyard.kmeans").info("dropped %d rows", 12)
    assert "dropped 12 rows" in output.getvalue()
    assert (list(logger.handlers), logger.level, logger.propagate) == before
