"""`python -m tests.kills --n 200 --seed 7`: `daskyard run` killed at random, read, and run again.

SIGKILL, SIGTERM and SIGINT go round. Half of the kills strike within 100 ms around the commit: after the PUT of the
last file, or of the manifest, has come to the proxy before the S3 server, which delays or spoils some of the manifests.
After each kill the reader looks, and looks again once what was held back has landed; then the run is run again, and has
to end well, with the figures of a run that nothing happened to. Ends with 0 where nothing is lost, hangs or is unclear.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from distributed import Client

from jobs import runner, spec, storage
from jobs.artifacts import Manifest
from jobs.local_s3 import LocalS3
from tests.processes import Processes
from tests.s3_proxy import Rule, S3Proxy
from tests.s3_reader import Lost, Reader

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# How each may end a run: told of in time, or struck before the command had begun.
ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (75, -15), signal.SIGINT: (130, -2)}
NEAR_S = 0.1
OVER_S = 600.0
# Of each few manifests one is late, one held back, one's answer is lost.
SPOILT = ("", "", "late", "held", "lost")


@dataclass
class Kills:
    """What came of the kills."""

    n: int = 0
    n_near: int = 0
    n_committed: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        ends = ", ".join(f"{n} × {end}" for end, n in sorted(self.ends.items()))
        counts = ", ".join(
            f"{sum(fault.startswith(name) for fault in self.faults)} {name}" for name in ("lost", "hanging", "unclear")
        )
        near = f"{self.n_near} within {NEAR_S * 1000:.0f} ms around the commit"
        return f"{self.n} kills, {near}, {self.n_committed} left a manifest; {counts}; ended: {ends}"


def write_job(bucket: str, folder: Path) -> Path:
    """Write a small table to the bucket, and a job on it."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 3))
    columns = {f"x{i}": features[:, i] for i in range(3)}
    buffer = pa.BufferOutputStream()
    target = features @ [1.0, -2.0, 0.5] + rng.normal(size=500)
    pq.write_table(pa.table({**columns, "y": target}), buffer)
    storage.write_bytes(f"{bucket}/data.parquet", buffer.getvalue().to_pybytes())
    job = {"pipeline": "linear_regression", "params": {"target": "y"}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**job, "input": f"{bucket}/data.parquet", "output": f"{bucket}/runs"}))
    return path


def start(job_file: Path, run_id: str, scheduler: str) -> subprocess.Popen[bytes]:
    """Start `daskyard run` on a running cluster."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    environment |= {"DASK_SCHEDULER_ADDRESS": scheduler, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.cli", "run", str(job_file), "--run-id", run_id]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


@dataclass(frozen=True)
class Place:
    """Where runs are killed: the job, the cluster, what lies before storage, and who reads."""

    job_file: Path
    client: Client
    proxy: S3Proxy
    reader: Reader

    def url(self, run_id: str) -> str:
        """URL of a run."""
        return f"{spec.load(str(self.job_file)).output}/{run_id}"

    def start(self, run_id: str) -> subprocess.Popen[bytes]:
        """Start a run."""
        return start(self.job_file, run_id, self.client.scheduler.address)


def kill(n: int, seed: int, place: Place) -> Kills:
    """Kill `n` runs and tell what came of it."""
    chance = random.Random(seed)
    kills = Kills()
    begin = time.monotonic()
    process = place.start("reference")
    _, errors = process.communicate(timeout=OVER_S)
    assert process.returncode == 0, errors.decode()
    whole_s = time.monotonic() - begin
    reference = place.reader.manifest(place.url("reference"))
    assert reference is not None
    for number in range(n):
        run_id = f"kill-{seed}-{number}"
        moment = None if number % 2 else chance.choice(["/report.html", "/manifest.json"])
        _kill_one(place, run_id, SIGNALS[number % len(SIGNALS)], moment, whole_s, chance, kills)
        _run_again(place, run_id, reference, kills)
    return kills


def _kill_one(
    place: Place,
    run_id: str,
    sent: signal.Signals,
    moment: str | None,
    whole_s: float,
    chance: random.Random,
    kills: Kills,
) -> None:
    """Kill a run, within 100 ms after the PUT of a file where there is a `moment`; look at what it left."""
    proxy, reader, run_url = place.proxy, place.reader, place.url(run_id)
    proxy.clear()
    spoilt = chance.choice(SPOILT)
    if spoilt:
        key = f"{run_id}/manifest.json"
        proxy.add(Rule(spoilt, method="PUT", key=key, last=1, seconds=chance.uniform(0.05, 1.0)))  # type: ignore[arg-type]
    process = place.start(run_id)
    if moment is not None:
        deadline = time.monotonic() + OVER_S
        while process.poll() is None and time.monotonic() < deadline:
            if any(s.method == "PUT" and run_id in s.target and s.target.endswith(moment) for s in proxy.seen()):
                break
            time.sleep(0.001)
        time.sleep(chance.uniform(0, NEAR_S))
    else:
        time.sleep(chance.uniform(0.05, 1.0) * whole_s)
    was_running = process.poll() is None
    if was_running:
        os.killpg(process.pid, sent)
    try:
        _, errors = process.communicate(timeout=OVER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        kills.faults.append(f"hanging: {run_id}")
        return
    kills.n += 1
    kills.n_near += moment is not None
    kills.ends[f"{sent.name} {process.returncode}" if was_running else "before its kill"] += 1
    if process.returncode not in (0, 75, *(ENDS[sent] if was_running else ())):
        kills.faults.append(f"unclear: {run_id}: {sent.name}, ended with {process.returncode}: {_end(errors)}")
    try:
        before = reader.manifest(run_url)
        proxy.clear()
        time.sleep(0.05)  # what was held back lands, or lands while the next one runs
        manifest = reader.manifest(run_url)
    except Lost as error:
        kills.faults.append(f"lost: {run_id}: {error}")
        return
    kills.n_committed += manifest is not None
    if process.returncode == 0 and before is None:
        kills.faults.append(f"unclear: {run_id}: ended with 0 and left no manifest: {_end(errors)}")
    has_said = process.returncode in (0, -signal.SIGKILL) or b"is not known" in errors
    if manifest is not None and not has_said:
        kills.faults.append(f"unclear: {run_id}: committed, and ended with {process.returncode}: {_end(errors)}")


def _end(errors: bytes) -> str:
    return errors.decode(errors="replace")[-800:]


def _run_again(place: Place, run_id: str, reference: Manifest, kills: Kills) -> None:
    run_url = place.url(run_id)
    try:
        result = runner.run(spec.load(str(place.job_file), run_id=run_id), client=place.client)
        manifest = place.reader.manifest(run_url)
        if manifest != result.manifest or manifest.metrics != reference.metrics:
            kills.faults.append(f"lost: {run_id}: the run that was run again is another than it should be")
        left = place.reader.keys(run_url)
        whole = {"manifest.json", *(f"attempts/{result.manifest.attempt}/{f.name}" for f in result.manifest.files)}
        if not result.was_committed and left != whole:
            kills.faults.append(f"unclear: {run_id}: left there: {sorted(left ^ whole)}")
    except Exception as error:
        kills.faults.append(f"lost: {run_id}: run again, it fails: {type(error).__name__}: {error}")


def main() -> int:
    """Return 0 where nothing was lost, hung or unclear."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description="Kill runs.")
    parser.add_argument("--n", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the moments")
    options = parser.parse_args()
    begin = time.monotonic()
    # In the background of a shell SIGINT is ignored, and by the runs that are started from there as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="daskyard-kills-") as name, LocalS3() as s3, S3Proxy(s3) as proxy:
        folder, reader = Path(name), Reader(s3)
        bucket = f"kills-{uuid.uuid4().hex[:8]}"
        s3.create_bucket(bucket)
        cluster = Processes(folder)
        try:
            cluster.start_scheduler()
            cluster.start_worker()
            with Client(cluster.address) as client:
                client.wait_for_workers(1, timeout=60)
                place = Place(write_job(f"s3://{bucket}", folder), client, proxy, reader)
                kills = kill(options.n, options.seed, place)
        finally:
            cluster.stop()
            reader.close()
    sys.stdout.write(f"seed {options.seed}: {kills}; {time.monotonic() - begin:.0f} s\n")
    for fault in kills.faults:
        sys.stdout.write(f"{fault}\n")
    return int(bool(kills.faults))


if __name__ == "__main__":
    sys.exit(main())
