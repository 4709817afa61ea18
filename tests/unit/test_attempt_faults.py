"""Whatever storage does to an attempt, and whenever: no manifest, or one whose files are all there and right.

Each case spoils one moment of an attempt's life by one rule of the proxy. Then a reader looks, what was held back
lands, the reader looks again, and a second attempt on a sound network ends the run.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobs.artifacts import Attempt, Manifest
from jobs.errors import DaskyardError
from jobs.local_s3 import LocalS3
from jobs.storage.tries import stalling_after
from tests.s3_proxy import Rule, S3Proxy
from tests.s3_reader import Lost, Reader
from tests.unit.test_artifacts import manifest_of

# Only while an attempt is spoilt, and short: where it strikes a request that nobody spoilt, that is one more fault.
STALL_S = 0.4
# Longer than storage may stall: the attempt is over when the request, or its answer, goes on.
HELD_S = 4 * STALL_S
OVER_S = 30.0

# What the rule takes: method, part of the path, number of the request; and what happens before, by another rule.
MOMENTS: dict[str, dict[str, Any]] = {
    "first file": {"method": "PUT", "key": "/attempts/"},
    "third file": {"method": "PUT", "key": "/attempts/", "first": 3},
    "manifest": {"method": "PUT", "key": "/manifest.json"},
    "manifest's second try": {"method": "PUT", "key": "/manifest.json"},
    "look after a lost answer": {"method": "GET", "key": "/manifest.json"},
    "look after another's commit": {"method": "GET", "key": "/manifest.json"},
    "listing of leftovers": {"method": "GET", "key": "list-type"},
    "removal of leftovers": {"method": "POST", "key": "delete"},
}
ON_THE_WAY_IN = ("held", "silent", "cut request", "trickling request")
ON_THE_WAY_OUT = ("late", "lost", "cut", "trickling")
REFUSALS = ("refused", "denied", "moved", "conflict", "unimplemented")
KINDS = {
    **dict.fromkeys(
        ("first file", "third file", "manifest", "manifest's second try"), (*ON_THE_WAY_IN, *ON_THE_WAY_OUT, *REFUSALS)
    ),
    **dict.fromkeys(
        ("look after a lost answer", "look after another's commit"),
        ("held", "silent", *ON_THE_WAY_OUT, *REFUSALS, "flipped"),
    ),
    "listing of leftovers": ("held", "silent", *ON_THE_WAY_OUT, *REFUSALS, "flipped", "stale"),
    "removal of leftovers": ("held", "silent", *ON_THE_WAY_OUT, *REFUSALS, "flipped"),
}
# These are tried again; a second try that meets the same ends elsewhere.
AGAIN = ("silent", "lost", "refused", "denied", "conflict")
CASES = [
    (moment, kind, how_often)
    for moment, kinds in KINDS.items()
    for kind in kinds
    for how_often in ("once", "always")
    if how_often == "once" or kind in AGAIN
]


@dataclass
class Tally:
    """What came out of the cases."""

    n_cases: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    tally = Tally()
    yield tally
    plugins = request.config.pluginmanager
    reporter, capture = (plugins.get_plugin(name) for name in ("terminalreporter", "capturemanager"))
    if reporter is not None and capture is not None:
        counts = ", ".join(f"{tally.faults[name]} {name}" for name in ("lost", "hanging", "unclear"))
        with capture.global_and_fixture_disabled():
            reporter.write_line(
                f"\nfaults of storage, one attempt: {tally.n_cases} cases, {counts}; slowest {tally.slowest_s:.1f} s"
            )


@pytest.fixture(scope="module")
def proxy(s3_server: LocalS3) -> Iterator[S3Proxy]:
    with S3Proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def reader(s3_server: LocalS3) -> Iterator[Reader]:
    reader = Reader(s3_server)
    yield reader
    reader.close()


def rule_of(kind: str, how_often: str, taken: dict[str, Any]) -> Rule:
    name, _, part = kind.partition(" ")
    first = taken.get("first", 1)
    return Rule(
        name,  # type: ignore[arg-type]
        **taken,
        last=first if how_often == "once" else None,
        seconds=HELD_S,
        pace_s=HELD_S,
        part=part or "answer",  # type: ignore[arg-type]
        drop="x-amz-checksum" if name == "flipped" else None,
    )


def end_of(attempt: Attempt) -> tuple[Manifest | None, bool]:
    """Write, commit, and do what a runner does; return the manifest that stands, if any, and whether that is known."""
    try:
        for name in ("a", "b/c", "d"):
            attempt.write_bytes(name, f"{attempt.id} {name}".encode())
        return attempt.commit(manifest_of(attempt)), True
    except DaskyardError:
        pass
    standing = None
    with suppress(DaskyardError):
        standing = attempt.settle()
    # Whatever the one who calls it knows: it must not take away what may come to be committed.
    return standing, attempt.discard() or standing is not None


@pytest.fixture(scope="module")
def bucket(s3_server: LocalS3) -> str:
    """One for all cases: the server keeps volumes for each."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(name)
    return f"s3://{name}"


@pytest.mark.parametrize(("moment", "kind", "how_often"), CASES)
def test_a_spoilt_attempt_leaves_no_manifest_or_a_whole_run(
    moment: str, kind: str, how_often: str, proxy: S3Proxy, reader: Reader, bucket: str, tally: Tally
) -> None:
    run_url = f"{bucket}/runs/{uuid.uuid4().hex}"
    proxy.clear()
    if moment == "look after another's commit":
        assert end_of(Attempt(run_url))[0] is not None
    else:
        Attempt(run_url).write_bytes("half", b"of a run that was killed")
    if moment in ("look after a lost answer", "manifest's second try"):
        proxy.add(Rule("lost", method="PUT", key="/manifest.json", last=1))
    proxy.add(rule_of(kind, how_often, MOMENTS[moment]))
    attempt = Attempt(run_url)
    start = time.monotonic()
    with stalling_after(STALL_S):
        known, is_known = end_of(attempt)
    seconds = time.monotonic() - start
    faults = set()
    if seconds > OVER_S:
        faults.add("hanging")
    try:
        before = reader.manifest(run_url)
        assert known is None or before == known  # what is said to be committed stands
        # What is held back goes on, whether anybody waits for it or not.
        proxy.clear()
        deadline = time.monotonic() + 10
        after = reader.manifest(run_url)
        while after is None and moment.startswith("manifest") and kind == "held" and time.monotonic() < deadline:
            time.sleep(0.02)
            after = reader.manifest(run_url)
        assert before is None or after == before
        if after is not None and after != known and is_known:
            faults.add("unclear")
        again, _ = end_of(Attempt(run_url))
        assert again is not None
        assert reader.manifest(run_url) == again
        assert after is None or again == after
    except Lost:
        faults.add("lost")
    tally.n_cases += 1
    tally.faults.update(faults)
    tally.slowest_s = max(tally.slowest_s, seconds)
    assert not faults
