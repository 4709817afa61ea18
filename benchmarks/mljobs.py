"""`python -m benchmarks.mljobs`: many MLJobs at once, on simulated nodes of a kind cluster with the platform in it.

Operator, controller, API server and scheduler are the real ones; kwok stands in for kubelets, so pods cost nothing, and
runners commit after 10 to 20 s. Tells jobs a minute, API calls a job and the controller's memory. Ends with 0 where
every job has succeeded in one attempt, nothing was made twice, nothing is left, and the memory is below its bar.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMESPACE, SYSTEM = "load", "daskyard-system"
NODES = 4
MEMORY_BAR = 512 << 20
DEADLINE_S = 1800
_FOLDER = Path(__file__).parent
# From inside: the controller's network policy lets nobody in.
_READ = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/metrics', timeout=10).read().decode())"
_LISTED = "daskclusters,daskworkergroups,jobs,configmaps,networkpolicies"

Object = dict[str, Any]


def main() -> int:
    """Run it, print figures, and return 0 where all bars hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mljobs", description="Many MLJobs at once.")
    parser.add_argument("--n", type=int, default=200, help="how many")
    parser.add_argument("--context", default="kind-daskyard", help="of kubectl")
    options = parser.parse_args()
    cluster = Cluster(options.context)
    with nodes(cluster), cluster.namespace():
        before = cluster.calls()
        start = time.monotonic()
        cluster.apply(*(mljob(n) for n in range(options.n)))
        seen, memory = watched(cluster, options.n)
        seconds = time.monotonic() - start
        calls = cluster.calls() - before
        jobs = cluster.listed("mljobs")
        phases = defaultdict(int)
        for job in jobs:
            phases[job["status"]["phase"], len(job["status"]["attempts"]), job["status"]["attempts"][-1]["logs"]] += 1
        left = {kind: len(cluster.listed(kind)) for kind in ("daskclusters", "daskworkergroups", "deployments")}
    twice = {name: uids for name, uids in seen.items() if len(uids) > 1}
    print(f"{options.n} MLJobs: {dict(phases)} in {seconds:.0f} s, {60 * options.n / seconds:.0f} a minute")
    print(f"API calls a job: {calls / options.n:.1f}; the controller's memory at most {memory / 2**20:.0f} MiB")
    print(f"made twice: {twice or 'nothing'}; left: {left}")
    is_good = set(phases) == {("Succeeded", 1, "Saved")} and not twice and not any(left.values())
    return 0 if is_good and memory < MEMORY_BAR else 1


def watched(cluster: Cluster, n: int) -> tuple[dict[str, set[str]], float]:
    """Wait until all jobs have ended and their logs are saved; return the UIDs seen by name, and the most memory."""
    seen: dict[str, set[str]] = defaultdict(set)
    memory, deadline = 0.0, time.monotonic() + DEADLINE_S
    while True:
        for item in cluster.listed(_LISTED):
            seen[f"{item['kind']}/{item['metadata']['name']}"].add(item["metadata"]["uid"])
        memory = max(memory, cluster.metric("process_resident_memory_bytes"))
        jobs = [job.get("status", {}) for job in cluster.listed("mljobs")]
        n_ended = sum("completionTime" in job and bool(job["attempts"][-1].get("logs")) for job in jobs)
        print(f"{n_ended} of {n} ended", file=sys.stderr)
        if n_ended == n and not cluster.listed("daskclusters"):
            return seen, memory
        if time.monotonic() > deadline:
            raise SystemExit(f"{n_ended} of {n} ended within {DEADLINE_S} s")
        time.sleep(3)


@contextmanager
def nodes(cluster: Cluster) -> Any:
    """Keep simulated nodes; they and what runs on them are gone afterwards."""
    command = ["kwok", "--kubeconfig", str(Path.home() / ".kube/config"), "--config", str(_FOLDER / "kwok.yaml")]
    command += ["--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        cluster.apply(*(node(n) for n in range(NODES)))
        yield
    finally:
        for n in range(NODES):
            cluster.kubectl("delete", "node", f"fake-{n}", "--ignore-not-found")
        process.terminate()
        process.wait(20)


class Cluster:
    """What kubectl tells of a cluster."""

    def __init__(self, context: str) -> None:
        self._context = context

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints."""
        command = ["kubectl", "--context", self._context, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def apply(self, *made: Object) -> None:
        """Make objects."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
        self.kubectl("apply", "--server-side", "--filename", "-", stdin=document)

    def listed(self, kinds: str) -> list[Object]:
        """Return objects of the benchmark's namespace."""
        text = self.kubectl("get", kinds, "--namespace", NAMESPACE, "--output", "json")
        return [item for item in json.loads(text)["items"] if item["metadata"]["name"] != "kube-root-ca.crt"]

    @contextmanager
    def namespace(self) -> Any:
        """Make the benchmark's namespace with its MLRuntime; all of it is gone afterwards."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, runtime())
        try:
            yield
        finally:
            self.kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=280s")

    def calls(self) -> float:
        """Return how many calls the controller has made to the API server, but for its Lease and its watches."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in self._metrics().splitlines()
            if line.startswith("daskyard_api_calls_total{") and not re.search(r'kind="Lease"|verb="watch"', line)
        )

    def metric(self, name: str) -> float:
        """Return one of the leader's figures."""
        lines = [line for line in self._metrics().splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].rpartition(" ")[2])

    def _metrics(self) -> str:
        lease = json.loads(
            self.kubectl("get", "lease", "daskyard-controller", "--namespace", SYSTEM, "--output", "json")
        )
        pod = lease["spec"]["holderIdentity"].rpartition("-")[0]
        return self.kubectl("exec", pod, "--namespace", SYSTEM, "--", "python", "-c", _READ)


def node(n: int) -> Object:
    """Return a simulated node."""
    capacity = {"cpu": "1000", "memory": "4000Gi", "pods": "5000", "ephemeral-storage": "4000Gi"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"fake-{n}",
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"daskyard.dev/fake": "yes"},
        },
        "spec": {"taints": [{"key": "daskyard.dev/fake", "value": "yes", "effect": "NoSchedule"}]},
        "status": {"capacity": capacity, "allocatable": capacity},
    }


def runtime() -> Object:
    """Return an MLRuntime whose pods go to the simulated nodes."""

    def pod(name: str) -> Object:
        resources = {"requests": {"cpu": "100m", "memory": "128Mi"}}
        return {
            "spec": {
                "nodeSelector": {"daskyard.dev/fake": "yes"},
                "tolerations": [{"key": "daskyard.dev/fake", "operator": "Exists"}],
                "containers": [{"name": name, "image": "fake", "args": ["fake"], "resources": resources}],
            }
        }

    ports = [
        {"name": "tcp-comm", "port": 8786, "targetPort": "tcp-comm"},
        {"name": "http-dashboard", "port": 8787, "targetPort": "http-dashboard"},
    ]
    selector = {"dask.org/cluster-name": "$(CLUSTER)", "dask.org/component": "scheduler"}
    policy = {"podSelector": {"matchLabels": {"dask.org/cluster-name": "$(CLUSTER)"}}, "policyTypes": ["Ingress"]}
    return {
        "apiVersion": "daskyard.dev/v1alpha1",
        "kind": "MLRuntime",
        "metadata": {"name": "default", "namespace": NAMESPACE},
        "spec": {
            "scheduler": {**pod("scheduler"), "service": {"type": "ClusterIP", "selector": selector, "ports": ports}},
            "runner": pod("runner"),
            "hardware": {"cpu": pod("worker")},
            "networkPolicies": [{"suffix": "all", "spec": policy}],
        },
    }


def mljob(n: int) -> Object:
    """Return an MLJob."""
    return {
        "apiVersion": "daskyard.dev/v1alpha1",
        "kind": "MLJob",
        "metadata": {"name": f"job-{n}", "namespace": NAMESPACE},
        "spec": {
            "pipeline": "kmeans",
            "params": {"n_clusters": 8},
            "input": "s3://demo/data/bio",
            "output": "s3://demo/runs",
            "workers": {"cpu": {"min": 2, "max": 4}},
        },
    }


if __name__ == "__main__":
    sys.exit(main())
