"""kubectl and helm for the scenarios: what a user would type, with deadlines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONTEXT = "kind-daskyard"
NAMESPACE = "daskyard"
SYSTEM = "daskyard-system"
ROOT = Path(__file__).parents[2]
VALUES = ("--values", str(ROOT / "operator_config/kind-jobs.yaml"))


def run(*command: str, stdin: str | None = None, timeout_s: float = 180, check: bool = True) -> str:
    """Run a command and return what it prints; the error shows what it said."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout if check else done.stdout + done.stderr


def kubectl(*arguments: str, namespace: str = NAMESPACE, **options: Any) -> str:
    """Run kubectl against the test cluster, and no other."""
    return run("kubectl", "--context", CONTEXT, "--namespace", namespace, *arguments, **options)


def helm(*arguments: str, namespace: str = NAMESPACE, **options: Any) -> str:
    """Run helm against the test cluster."""
    return run("helm", "--kube-context", CONTEXT, "--namespace", namespace, *arguments, **options)


def get(*arguments: str, namespace: str = NAMESPACE) -> Any:
    """Return objects as kubectl tells them in JSON; None where there is none of that name."""
    text = kubectl("get", *arguments, "--output", "json", "--ignore-not-found", namespace=namespace)
    return json.loads(text) if text.strip() else None


def listed(*arguments: str, namespace: str = NAMESPACE) -> list[Any]:
    """Return objects of a kind, or several; kubectl prints nothing where there are none."""
    return list((get(*arguments, namespace=namespace) or {"items": []})["items"])


def pods(cluster: str, component: str, namespace: str = NAMESPACE) -> list[Any]:
    """Return the pods of a cluster's component that are not on their way out."""
    selector = f"dask.org/cluster-name={cluster},dask.org/component={component}"
    found = listed("pods", "--selector", selector, namespace=namespace)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod: Any) -> bool:
    """Whether the pod says that it is ready."""
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def name_of(item: Any) -> str:
    """Return an object's name."""
    return str(item["metadata"]["name"])


def wait(what: str, condition: Callable[[], Any], timeout_s: float = 120, pause_s: float = 0.5) -> Any:
    """Return the first truth that `condition` tells, or fail with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(pause_s)


def is_gone(cluster: str, namespace: str = NAMESPACE) -> bool:
    """Whether nothing is left of a cluster."""
    kinds = "daskjobs,daskclusters,daskworkergroups,daskautoscalers,deployments,services,pods"
    found = kubectl(
        "get", kinds, "--selector", f"dask.org/cluster-name={cluster}", "--output", "name", namespace=namespace
    )
    return not found.strip()


def status(job: str) -> str:
    """Return the status of a DaskJob, or an empty string."""
    found = get("daskjob", job)
    return str((found or {}).get("status", {}).get("jobStatus", ""))


def log(job: str) -> str:
    """Return what the runner of a job has printed so far."""
    return kubectl("logs", f"{job}-runner", check=False)


def wait_end(job: str, timeout_s: float = 900) -> str:
    """Wait for a job's end and return its status; two slow cores that carry a cluster too need minutes for an epoch."""
    return str(wait(f"the end of {job}", lambda: status(job) in ("Successful", "Failed") and status(job), timeout_s, 1))


def wait_stage(job: str, stage: str, timeout_s: float = 180) -> None:
    """Wait until the runner's log names a stage."""

    def is_there() -> bool:
        text = log(job)
        assert status(job) not in ("Successful", "Failed"), f"{job} ended before {stage}:\n{text}"
        return stage in text

    wait(f"{job}: stage {stage}", is_there, timeout_s, 0.5)


@contextmanager
def job(name: str, spec: str, *options: str) -> Iterator[str]:
    """Install the chart `job` for a spec, given as YAML; what it made is gone afterwards."""
    file = ROOT / ".pytest_cache" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(spec)
    helm("install", name, str(ROOT / "charts/daskjob"), *VALUES, "--set-file", f"job={file}", *options)
    try:
        yield name
    finally:
        remove(name)


@contextmanager
def cluster(name: str, *options: str) -> Iterator[str]:
    """Install the chart `cluster` and wait for its workers; it is gone afterwards."""
    helm("install", name, str(ROOT / "charts/cluster"), *VALUES, *options)
    try:
        wait(f"the scheduler of {name}", lambda: any(map(is_ready, pods(name, "scheduler"))))
        wait(f"the workers of {name}", lambda: (found := pods(name, "worker")) and all(map(is_ready, found)))
        yield name
    finally:
        remove(name)


def remove(name: str) -> None:
    """Uninstall a release and wait until nothing of its cluster is left."""
    helm("uninstall", name, "--ignore-not-found", "--wait")
    wait(f"the end of all of {name}", lambda: is_gone(name), timeout_s=150, pause_s=1)


def on_scheduler(cluster_name: str, code: str, timeout_s: float = 120) -> Any:
    """Run Python beside the scheduler, with `client` connected to it, and return the JSON that it prints last."""
    program = f"from distributed import Client\nimport json\nclient = Client('tcp://127.0.0.1:8786')\n{code}\nclient.close()\n"
    scheduler = name_of(wait(f"{cluster_name}'s scheduler", lambda: pods(cluster_name, "scheduler"))[0])
    text = kubectl("exec", "--stdin", scheduler, "--", "python", "-", stdin=program, timeout_s=timeout_s)
    return json.loads(text.strip().splitlines()[-1])


@contextmanager
def minio() -> Iterator[dict[str, str]]:
    """Forward a port to MinIO and yield the environment in which this machine's S3 clients reach it."""
    script = "env -0 && exec sleep infinity"
    process = subprocess.Popen(
        [str(ROOT / "operator_config/kind/with-minio"), "bash", "-c", script],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        seen = b""
        deadline = time.monotonic() + 30
        while b"AWS_DEFAULT_REGION=" not in seen or not seen.endswith(b"\0"):
            assert time.monotonic() < deadline, "MinIO: no port within 30 s"
            seen += os.read(process.stdout.fileno(), 65536)
        variables = dict(pair.split("=", 1) for pair in seen.decode().split("\0") if "=" in pair)
        yield {name: value for name, value in variables.items() if name.startswith("AWS_") or name == "NO_PROXY"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
        process.stdout.close()
