"""`python -m controller`: bring MLJobs forward, as the one of several processes that holds the Lease."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from prometheus_client import generate_latest

from controller.api import Api
from controller.controller import N_THREADS, Controller
from controller.lease import Lease
from controller.schedulers import Schedulers

_log = logging.getLogger("daskyard.controller")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop (exit code 0), or until the Lease is lost (1); then somebody else leads."""
    options = _options(arguments)
    _set_up_logging(options.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    controller, api = _controller(options)
    identity = f"{os.environ.get('POD_NAME', 'controller')}-{uuid.uuid4().hex[:8]}"
    lease = Lease(api, options.lease_namespace, options.lease_name, identity)
    server = _serve(controller, options.http_port)
    controller.start_mirrors()
    try:
        if not lease.acquire(stop):
            return 0
        controller.lead()
        if not lease.keep(stop):
            return 1  # what is in work ends with the process, before the Lease is anybody else's
        controller.stop()
        lease.release()
        return 0
    finally:
        controller.stop(0)
        server.shutdown()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m controller", description="The controller of MLJobs.")
    parser.add_argument("--namespace", action="append", default=[], help="a namespace to serve; by default all")
    parser.add_argument("--lease-namespace", default="default", help="where the Lease is")
    parser.add_argument("--lease-name", default="daskyard-controller", help="its name")
    parser.add_argument("--http-port", type=int, default=8080, help="of /healthz, /readyz and /metrics")
    parser.add_argument("--log-format", choices=("json", "plain"), default="plain", help="for machines or people")
    parser.add_argument("--quiet-seconds", type=float, default=60.0, help="before a group of workers shrinks")
    parser.add_argument(
        "--scheduler-url",
        default=Schedulers.URL,
        metavar="URL",
        help="where {service} of {namespace} is; kubectl proxy has it too",
    )
    parser.add_argument("--context", help="of the kubeconfig, where it does not run in a cluster")
    return parser.parse_args(arguments)


def _controller(options: argparse.Namespace) -> tuple[Controller, Api]:
    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        config.load_kube_config(context=options.context, client_configuration=configuration)  # type: ignore[no-untyped-call]
    # A connection for each watch, and for each thread that writes.
    configuration.connection_pool_maxsize = 10 * max(len(options.namespace), 1) + 2 * N_THREADS
    client = ApiClient(configuration)
    counted: list[Controller] = []
    api = Api(client, lambda verb, kind, outcome: counted[0].metrics.on_call(verb, kind, outcome))
    controller = Controller(api, options.namespace, Schedulers(options.scheduler_url), options.quiet_seconds)
    counted.append(controller)
    return controller, api


def _serve(controller: Controller, port: int) -> ThreadingHTTPServer:
    """Serve liveness, readiness and metrics in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = 404, "there are /healthz, /readyz and /metrics\n"
            if self.path == "/healthz":
                problem = controller.problem
                status, text = (503, f"{problem}\n") if problem else (200, "ok\n")
            elif self.path == "/readyz":
                status, text = (200, "ok\n") if controller.is_ready else (503, "mirrors are not filled yet\n")
            elif self.path == "/metrics":
                status, text = 200, generate_latest(controller.metrics.registry).decode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {"time": f"{at}.{int(record.msecs):03d}Z", "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


def _set_up_logging(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if log_format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logger = logging.getLogger("daskyard")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


if __name__ == "__main__":
    sys.exit(main())
