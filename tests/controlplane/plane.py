"""A control plane without nodes, with the platform's charts in it; operator and controller run as processes.

Each of them has its own account's rights, as its pod would have. `tests/controlplane/kubelet.py` stands in for nodes.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from controller.api import Api, Object
from tests.e2e.kube import ROOT, run, wait

PROGRAM = ROOT.parent / "shared" / "testbed" / "controlplane"
SYSTEM, TEAM = "daskyard-system", "daskyard"
_OVERLAYS = ("operator.yaml", "kind.yaml")
# Of the control plane: API server, etcd twice, controller manager, scheduler.
_N_PORTS = 5
_POOL = 64


class Plane:
    """A control plane, as its administrator sees it.

    Attributes
    ----------
    client, api
        Calls with all rights.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.kubeconfig = folder / "administrator.kubeconfig"
        self._write(self.kubeconfig, (folder / "kubeconfig").read_text())
        self.client = _client(self.kubeconfig)
        self.api = Api(self.client)

    def kubectl(self, *arguments: str, namespace: str = TEAM, **options: Any) -> str:
        """Run kubectl and return what it prints."""
        return run("kubectl", "--kubeconfig", str(self.kubeconfig), "--namespace", namespace, *arguments, **options)

    def apply(self, *made: Object) -> None:
        """Make objects, of any kind."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
        self.kubectl("apply", "--server-side", "--filename", "-", stdin=document)

    def get(self, kind: str, name: str, namespace: str = TEAM) -> Object | None:
        """Return an object, or None."""
        return next((item for item in self.listed(kind, namespace) if item["metadata"]["name"] == name), None)

    def listed(self, kind: str, namespace: str = TEAM) -> list[Object]:
        """Return the objects of a kind."""
        return self.api.list(kind, namespace)[0]

    def status(self, job: str, namespace: str = TEAM) -> Object:
        """Return an MLJob's status."""
        return dict((self.get("MLJob", job, namespace) or {}).get("status") or {})

    def events(self, reason: str, namespace: str = TEAM) -> list[str]:
        """Return the messages of Events of this reason."""
        return [str(event.get("message")) for event in self.listed("Event", namespace) if event["reason"] == reason]

    def wait_for_phase(self, job: str, phase: str, timeout_s: float = 60, namespace: str = TEAM) -> Object:
        """Wait until an MLJob is in a phase, and return its status."""

        def reached() -> Object | None:
            status = self.status(job, namespace)
            return status if status.get("phase") == phase else None

        try:
            return dict(wait(f"{job} {phase}", reached, timeout_s, pause_s=0.1))
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(self.status(job, namespace), indent=1)}") from None

    def account(self, name: str, namespace: str = SYSTEM) -> Path:
        """Return a kubeconfig with the rights of a service account."""
        file = self._folder / f"{namespace}.{name}.kubeconfig"
        if not file.exists():
            self._write(file, run(str(PROGRAM), "token", str(self._folder), namespace, name))
        return file

    def _write(self, file: Path, kubeconfig: str) -> None:
        """Write a kubeconfig, which trusts the server's own certificate in place of any."""
        trust = f'certificate-authority: "{self._folder}/certs/apiserver.crt"'
        file.touch(0o600)
        file.write_text(kubeconfig.replace("insecure-skip-tls-verify: true", trust))

    def arguments(self, deployment: str) -> list[str]:
        """Return the command line that the chart gives a Deployment's container."""
        found = self.api.get("Deployment", SYSTEM, deployment)
        return list(found["spec"]["template"]["spec"]["containers"][0]["args"])

    @contextmanager
    def controller(self, scheduler_url: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the controller with its account's rights and the chart's arguments."""
        given = [a for a in self.arguments("daskyard-controller") if not a.startswith("--http-port")]
        command = [sys.executable, "-P", "-m", "controller", *given, f"--http-port={free_ports(1)}"]
        command += [f"--scheduler-url={scheduler_url}", *options]
        with self._process("controller", command, self.account("daskyard-controller")) as process:
            yield process

    @contextmanager
    def operator(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the stock operator with its account's rights and the chart's arguments."""
        given = [a for a in self.arguments("daskyard-operator") if not a.startswith("--liveness")]
        command = [str(ROOT / ".venv/bin/kopf"), "run", "-m", "dask_kubernetes.operator.controller", *given]
        with self._process("operator", command, self.account("daskyard-operator")) as process:
            yield process

    @contextmanager
    def _process(self, name: str, command: list[str], kubeconfig: Path) -> Iterator[subprocess.Popen[bytes]]:
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "POD_NAME": name}
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self._folder)
            try:
                yield process
            finally:
                process.terminate()  # the controller gives its Lease back
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)


@contextmanager
def plane(folder: Path) -> Iterator[Plane]:
    """Yield a control plane with platform and runtime in it; the simulated node that it comes with is gone."""
    with ExitStack() as stack:
        stack.callback(run, str(PROGRAM), "down", str(folder), check=False)
        run(str(PROGRAM), "up", str(folder), str(free_ports(_N_PORTS)))
        made = Plane(folder)
        made.kubectl("delete", "node", "fake")
        made.kubectl("create", "namespace", SYSTEM)
        charts = str(ROOT / "charts")
        helm = ("helm", "--kubeconfig", str(made.kubeconfig))
        values = [f"--values={ROOT / 'operator_config' / name}" for name in _OVERLAYS]
        run(*helm, "install", "daskyard", f"{charts}/platform", "--namespace", SYSTEM, *values)
        runtime = f"--values={ROOT / 'operator_config/kind-runtime.yaml'}"
        run(*helm, "install", "default", f"{charts}/runtime", "--namespace", TEAM, runtime)
        yield made


def free_ports(n: int) -> int:
    """Return the first of n ports in a row that nobody listens at."""
    while True:
        first = random.randrange(20_000, 32_000)
        try:
            for port in range(first, first + n):
                with closing(socket.create_server(("127.0.0.1", port))):
                    pass
        except OSError:
            continue
        return first


def _client(kubeconfig: Path) -> ApiClient:
    configuration = Configuration()
    config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    configuration.connection_pool_maxsize = _POOL
    return ApiClient(configuration)
