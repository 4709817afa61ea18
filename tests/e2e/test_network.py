"""Do pods reach what the flow matrix of docs/kubernetes.md allows, and nothing else?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import kube
import pytest
from jobs_of import clusters_of_proteins

STRANGERS = "daskyard-strangers"
# Listens where training would, on a port that the kernel picks, for as long as the scenario takes.
LISTEN = """
import socket, time
listener = socket.create_server(("0.0.0.0", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(300)
"""
TRAINING = range(40000, 41000)
DIAL = """
import json, socket
def dial(target):
    try:
        socket.create_connection(target, timeout=4).close()
        return "open"
    except OSError as error:
        return "closed: " + type(error).__name__
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(32) as pool:
    print(json.dumps(list(pool.map(dial, [tuple(target) for target in json.loads(TARGETS)]))))
"""
STRANGER = """
apiVersion: v1
kind: Pod
metadata:
  name: stranger
  labels: {dask.org/cluster-name: net-a, dask.org/component: job-runner}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: stranger
      image: localhost:5001/daskyard/jobs:0.1.0
      command: [sleep, "600"]
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""


@pytest.fixture(scope="module")
def pods() -> Iterator[dict[str, tuple[str, str]]]:
    """A job's three kinds of pods, another cluster of the same namespace, and a stranger: name → namespace and pod."""
    kube.kubectl("create", "namespace", STRANGERS)
    try:
        kube.kubectl("create", "--filename", "-", namespace=STRANGERS, stdin=STRANGER)
        with kube.job("net-a", clusters_of_proteins("net-a", 1000)), kube.cluster("net-b"):
            workers = kube.wait("two workers", lambda: len(found := kube.pods("net-a", "worker")) == 2 and found)
            kube.wait_stage("net-a", "fit")
            kube.wait("the stranger", lambda: kube.is_ready(kube.get("pod", "stranger", namespace=STRANGERS)))
            yield {
                "runner": (kube.NAMESPACE, "net-a-runner"),
                "scheduler": (kube.NAMESPACE, kube.name_of(kube.pods("net-a", "scheduler")[0])),
                "worker": (kube.NAMESPACE, kube.name_of(workers[0])),
                "second worker": (kube.NAMESPACE, kube.name_of(workers[1])),
                "other scheduler": (kube.NAMESPACE, kube.name_of(kube.pods("net-b", "scheduler")[0])),
                "other worker": (kube.NAMESPACE, kube.name_of(kube.pods("net-b", "worker")[0])),
                "stranger": (STRANGERS, "stranger"),
                "operator": (kube.SYSTEM, _pod_of("daskyard-operator")),
                "controller": (kube.SYSTEM, _pod_of("daskyard-controller")),
                "minio": ("minio", kube.name_of(kube.listed("pods", namespace="minio")[0])),
            }
    finally:
        kube.kubectl("delete", "namespace", STRANGERS, "--wait=false")


# Workers listen on a port of training's range besides; nothing listens on that of the runner.
PORTS = {
    "runner": [8786, 8788, TRAINING[0]],
    "scheduler": [8786, 8787],
    "worker": [8788, 8789, 8790],
    "second worker": [8788, 8789, 8790],
    "other scheduler": [8786, 8787],
    "other worker": [8788, 8789],
    "minio": [9000],
    "stranger": [8786],
    "operator": [8080],
    "controller": [8080],
}
SOURCES = (
    *("runner", "scheduler", "worker", "second worker", "other worker", "other scheduler"),
    *("stranger", "operator", "controller"),
)
WORKERS = ("worker", "second worker")
ALLOWED = (
    {("runner", "scheduler", 8786), ("scheduler", "scheduler", 8786), ("scheduler", "scheduler", 8787)}
    | {(worker, "scheduler", 8786) for worker in WORKERS}
    | {("scheduler", worker, port) for worker in WORKERS for port in (8788, 8789)}
    | {(a, b, port) for a in WORKERS for b in WORKERS for port in (8788, "training")}
    | {("operator", scheduler, port) for scheduler in ("scheduler", "other scheduler") for port in (8786, 8787)}
    | {("controller", scheduler, 8787) for scheduler in ("scheduler", "other scheduler")}
    | {(source, "minio", 9000) for source in ("runner", *WORKERS, "other worker")}
    | {("other worker", "other scheduler", 8786)}
    | {("other scheduler", "other worker", port) for port in (8788, 8789)}
)


def test_network_policies_allow_the_flow_matrix_and_nothing_else(pods: dict[str, tuple[str, str]]) -> None:
    addresses = {
        name: kube.get("pod", pod, namespace=namespace)["status"]["podIP"] for name, (namespace, pod) in pods.items()
    }
    api = kube.get("service", "kubernetes", namespace="default")["spec"]["clusterIP"]
    nodes = kube.listed("nodes")
    node_api = next(
        address["address"]
        for node in nodes
        if "node-role.kubernetes.io/control-plane" in node["metadata"]["labels"]
        for address in node["status"]["addresses"]
        if address["type"] == "InternalIP"
    )
    targets: list[tuple[str, int | str, str, int]] = [
        (name, port, addresses[name], port) for name, ports in PORTS.items() for port in ports
    ]
    targets += [("Kubernetes API", port, ip, port) for port, ip in ((443, api), (6443, node_api))]
    allowed = ALLOWED | {(who, "Kubernetes API", port) for who in ("operator", "controller") for port in (443, 6443)}
    # No policy of ours is about the stranger's own way out, nor about MinIO.
    allowed |= {("stranger", "Kubernetes API", 443), ("stranger", "Kubernetes API", 6443), ("stranger", "minio", 9000)}

    with ExitStack() as stack, ThreadPoolExecutor(len(SOURCES)) as pool:
        for name in (*WORKERS, "other worker"):
            targets.append((name, "training", addresses[name], stack.enter_context(_listening(*pods[name]))))
        dialled = [(ip, port) for _, _, ip, port in targets]
        answers = list(pool.map(lambda source: _dial(*pods[source], dialled), SOURCES))
    wrong = []
    for source, found in zip(SOURCES, answers, strict=True):
        for (name, port, _, _), answer in zip(targets, found, strict=True):
            # A pod reaches itself without the network.
            if name != source and (answer == "open") != ((source, name, port) in allowed):
                wrong.append(f"{source} → {name}:{port} is {answer}")
    assert not wrong, "\n".join(wrong)


def _pod_of(name: str) -> str:
    found = kube.listed("pods", "--selector", f"app.kubernetes.io/name={name}", namespace=kube.SYSTEM)
    return kube.name_of(found[0])


@contextmanager
def _listening(namespace: str, pod: str) -> Iterator[int]:
    command = [
        "kubectl",
        "--context",
        kube.CONTEXT,
        "--namespace",
        namespace,
        "exec",
        pod,
        "--",
        "python",
        "-c",
        LISTEN,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            assert port in TRAINING
            yield port
        finally:
            process.kill()


def _dial(namespace: str, pod: str, targets: list[tuple[str, int]]) -> list[str]:
    program = f"TARGETS = {json.dumps(json.dumps(targets))}\n{DIAL}"
    text = kube.kubectl("exec", "--stdin", pod, "--", "python", "-", namespace=namespace, stdin=program)
    answers: list[str] = json.loads(text)
    assert len(answers) == len(targets)
    return answers
