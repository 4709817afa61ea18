"""`daskyard submit` and `daskyard follow`, against a server that speaks the few paths of the API that they use."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from controller.resources import MLJobSpec
from jobs import spec
from jobs.cli import submit as submitting
from jobs.cli.app import app
from jobs.cli.progress import watching
from jobs.cli.submit_api import Cluster, NoAnswerError
from jobs.cli.submit_status import StatusShown

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples/mljobs").glob("*.yaml"))
JOBS = "/apis/daskyard.dev/v1alpha1/namespaces/team/mljobs"
PODS = "/api/v1/namespaces/team/pods"
JOB_FILE = {"pipeline": "kmeans", "input": "s3://demo/data/bio", "output": "s3://demo/runs", "params": {"n_init": 3}}
TIMES = {"startTime": "2026-11-28T05:00:00.000000Z", "completionTime": "2026-11-28T05:00:48.500000Z"}


def condition(kind: str, is_so: bool, reason: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": str(is_so), "reason": reason, "message": message}


def pending(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"phase": "Pending", "conditions": [condition("Complete", False, reason, message)], **more}


def running(stage: str | None = None, progress: int | None = None, **more: Any) -> dict[str, Any]:
    conditions = [condition("Complete", False, "Running"), condition("ClusterReady", True, "Ready")]
    first = {"number": 1, "startTime": TIMES["startTime"]}
    status = {"phase": "Running", "conditions": conditions, "attempt": 1, "attempts": [first], "stage": stage}
    return {**status, "progress": progress, **more}


def succeeded() -> dict[str, Any]:
    conditions = [condition("Complete", True, "Committed", "manifest.json is there")]
    metrics = {"inertia": 123.456789, "n_iterations": 12345}
    run = {"runUrl": "s3://demo/runs/bio-kmeans", "metrics": metrics, "attempt": 1, "progress": 100}
    return {"phase": "Succeeded", "conditions": conditions, **run, **TIMES}


def failed(reason: str, message: str = "that is how it is") -> dict[str, Any]:
    end = {"number": 1, "startTime": TIMES["startTime"], "endTime": TIMES["completionTime"], "reason": reason}
    conditions = [condition("Complete", False, reason, message), condition("Failed", True, reason, message)]
    return {"phase": "Failed", "conditions": conditions, "attempts": [end], "attempt": 1, **TIMES}


@dataclass
class Server:
    """A namespace's MLJobs and pods; each look at a job brings its status one further."""

    port: int = 0
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    is_silent: Callable[[], bool] = lambda: False
    log: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def answer(self, verb: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        self.asked.append(f"{verb} {path}")
        if self.refusal is not None:
            return self.refusal
        if (verb, path) == ("POST", JOBS):
            return self._create(query, body)
        if (verb, path) == ("GET", PODS):
            labels = query["labelSelector"][0].split(",")
            assert {"daskyard.dev/job-uid=uid-1", "daskyard.dev/attempt=1", "app.kubernetes.io/component=runner"} == {
                *labels
            }
            metadata = {"name": "bio-kmeans-1-x", "creationTimestamp": TIMES["startTime"]}
            spec = {"containers": [{"name": "runner"}]}
            return 200, {"items": [{"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}]}
        if (verb, path) == ("GET", f"{PODS}/bio-kmeans-1-x/log"):
            self.log.append(f"2026-11-28T05:00:0{len(self.log)}.000000000Z line {len(self.log) + 1}")
            return 200, "\n".join(self.log) + "\n"
        return self._get(path.removeprefix(f"{JOBS}/"))

    def _create(self, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        assert query["fieldValidation"] == ["Strict"]
        kept = {"runtime": "default", "backoffLimit": 3, "suspend": False, "workers": {"cpu": {"min": 1}}}
        kept |= body["spec"]
        kept["workers"] = {name: {"min": 1, "max": 2} | group for name, group in kept["workers"].items()}
        made = {"metadata": {**body["metadata"], "uid": "uid-1"}, "spec": kept}
        if "dryRun" in query:
            return 201, made
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, says(409, f'mljobs.daskyard.dev "{name}" already exists')
        self.jobs[name] = made
        return 201, made

    def _get(self, name: str) -> tuple[int, Any]:
        if name not in self.jobs:
            return 404, says(404, f'mljobs.daskyard.dev "{name}" not found')
        if self.statuses:
            self.jobs[name]["status"] = self.statuses.pop(0)
        return 200, self.jobs[name]


def says(code: int, message: str) -> str:
    return json.dumps({"kind": "Status", "code": code, "message": message})


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            url = urlsplit(self.path)
            if server.is_silent():
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            code, said = server.answer(self.command, url.path, parse_qs(url.query), body)
            content = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(made)) as http:
        http.daemon_threads = True
        made.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield made
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def kubeconfig(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
        "users": [{"name": "me", "user": {"token": "a-token"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
        "current-context": "here",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(submitting, "POLL_S", 0.02)
    return path


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "bio_kmeans.yaml"
    path.write_text(yaml.safe_dump(JOB_FILE))
    return str(path)


def call(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=stdin, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result


def error_line(result: Result) -> str:
    """The last line, which is the only one that is an error."""
    *others, last = result.stderr.strip().splitlines()
    assert last.startswith("error: ")
    assert not any("error:" in line for line in others)
    return last


def test_a_job_is_followed_to_its_success(server: Server, job_file: str) -> None:
    server.statuses = [
        pending("Preflight", "the runner looks whether input and output are in order"),
        running("load"),
        running("fit", 42, secondsLeft=31),
        succeeded(),
    ]
    result = call("submit", job_file)
    assert "kmeans  48 s" in result.stdout
    assert "12,345" in result.stdout
    assert result.stdout.endswith("run     s3://demo/runs/bio-kmeans\n")
    told = [line.partition(" ")[2] for line in result.stderr.splitlines()]
    ends = [line for line in told if " took " in line]
    assert [line for line in told if line not in ends] == [
        "MLJob team/bio-kmeans: submitted",
        "Pending: Preflight: the runner looks whether input and output are in order",
        "attempt 1",
        "Running",
        "ClusterReady is true: Ready",
        "1/5 load",
        "3/5 fit",
        "Succeeded: Committed: manifest.json is there",
    ]
    assert [line.split()[:2] for line in ends] == [["1/5", "load"], ["3/5", "fit"]]
    assert server.jobs["bio-kmeans"]["spec"]["params"] == {"n_init": 3}


def test_attempts_that_ended_say_why(server: Server, job_file: str) -> None:
    lost = {"number": 1, "startTime": TIMES["startTime"], "endTime": TIMES["completionTime"], "reason": "SchedulerLost"}
    attempts = [{**lost, "message": "it did not answer"}, {"number": 2, "startTime": TIMES["startTime"]}]
    server.statuses = [running("fit"), running("load", attempts=attempts, attempt=2), succeeded()]
    told = call("submit", job_file).stderr
    assert "attempt 1 ended: SchedulerLost: it did not answer" in told
    assert "attempt 2" in told
    assert "fit took" not in told


def test_json_is_the_status(server: Server, job_file: str) -> None:
    server.statuses = [succeeded()]
    document = json.loads(call("submit", job_file, "--json").stdout)
    assert document == {"namespace": "team", "name": "bio-kmeans", **succeeded()}
    server.statuses = [failed("WrongInput")]
    assert json.loads(call("follow", "bio-kmeans", "--json", code=2).stdout)["phase"] == "Failed"


def test_what_the_runner_writes_is_shown_once(server: Server, job_file: str) -> None:
    server.statuses = [running("load"), running("load"), succeeded()]
    told = call("submit", job_file, "--logs").stderr
    assert [told.count(f"line {number}\n") for number in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("WrongSpec", 2),
        ("StorageDenied", 2),
        ("StorageMissing", 2),
        ("WrongInput", 2),
        ("Retriable", 75),
        ("SchedulerLost", 75),
        ("TooFewWorkers", 75),
        ("Unschedulable", 75),
        ("QuotaExceeded", 75),
        ("StorageUnreachable", 75),
        ("CodeError", 1),
        ("OutOfMemory", 1),
        ("DeadlineExceeded", 1),
    ],
)
def test_the_exit_code_of_a_failed_job_says_what_to_do_next(
    server: Server, job_file: str, reason: str, code: int
) -> None:
    server.statuses = [failed(reason)]
    result = call("submit", job_file, code=code)
    assert result.stdout == ""
    assert f"MLJob team/bio-kmeans failed: {reason}: that is how it is; " in error_line(result)
    assert "kubectl delete mljob bio-kmeans --namespace team" in error_line(result)


def test_a_wrong_file_costs_nothing(server: Server, job_file: str, tmp_path: Path) -> None:
    assert "did you mean 'n_init'?" in error_line(call("submit", job_file, "--set", "params.n_inti=3", code=2))
    manifest = tmp_path / "job.yaml"
    content = {"apiVersion": "daskyard.dev/v1alpha1", "kind": "MLJob", "metadata": {"name": "a"}, "spec": JOB_FILE}
    manifest.write_text(yaml.safe_dump(content))
    wrong = call("submit", str(manifest), "--set", "params.n_clusters=none", code=2)
    assert "spec: params.n_clusters" in error_line(wrong)
    assert "--name" in error_line(call("submit", job_file, "--name", "Not_a_name", code=2))
    assert "--name" in error_line(call("submit", "-", code=2, stdin=yaml.safe_dump(JOB_FILE)))
    assert "2-8" in error_line(call("submit", job_file, "--workers", "many", code=2))
    assert "'Job' is not MLJob" in error_line(call("submit", "-", code=2, stdin=json.dumps({**content, "kind": "Job"})))
    assert "neither an MLJob" in error_line(call("submit", "-", code=2, stdin="a: 1"))
    assert "cannot be read" in error_line(call("submit", str(tmp_path / "none.yaml"), code=2))
    assert server.asked == []


def test_options_change_the_spec(server: Server) -> None:
    options = ("--name", "other", "--runtime", "big", "--workers", "2-8", "--hardware", "gpu", "--set", "run_id=r1")
    result = call("submit", "-", "--detach", *options, stdin=yaml.safe_dump(JOB_FILE))
    assert result.stdout.endswith("submitted; follow it: daskyard follow other --namespace team\n")
    made = server.jobs["other"]["spec"]
    assert (made["runtime"], made["runId"]) == ("big", "r1")
    assert made["workers"] == {"gpu": {"hardware": "gpu", "min": 2, "max": 8}}


def test_an_mljob_is_submitted_as_it_is(server: Server) -> None:
    path = ROOT / "examples/mljobs/bio_kmeans.yaml"
    call("submit", str(path), "--detach", "--set", "backoffLimit=1", "--workers", "4")
    wanted = yaml.safe_load(path.read_text())["spec"]
    assert server.jobs["bio-kmeans"]["spec"].items() >= {**wanted, "workers": {"cpu": {"min": 4, "max": 4}}}.items()
    assert server.jobs["bio-kmeans"]["spec"]["backoffLimit"] == 1


def test_a_job_that_exists_is_followed_if_it_is_the_same(server: Server, job_file: str) -> None:
    call("submit", job_file, "--detach")
    # What others may switch makes it no other job.
    server.jobs["bio-kmeans"]["spec"]["suspend"] = True
    server.statuses = [running("fit"), succeeded()]
    assert "it exists with this spec" in call("submit", job_file).stderr
    for change in (("--set", "params.n_init=4"), ("--workers", "3-4"), ("--set", "run_id=r2")):
        line = error_line(call("submit", job_file, *change, code=2))
        assert "MLJob team/bio-kmeans: it exists with another spec" in line
        assert "--name" in line
        assert "kubectl delete mljob bio-kmeans --namespace team" in line


def test_how_long_a_stage_took_is_not_said_of_one_found_in_its_midst(server: Server, job_file: str) -> None:
    call("submit", job_file, "--detach")
    server.statuses = [running("fit"), running("fit"), running("write"), succeeded()]
    told = call("follow", "bio-kmeans").stderr
    assert "fit took" not in told
    assert "write took" in told


def test_there_is_no_such_job(server: Server) -> None:
    line = error_line(call("follow", "none", "--namespace", "team", code=2))
    assert line == "error: MLJob team/none: there is none; kubectl get mljobs --namespace team lists them"


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        ((403, says(403, "mljobs.daskyard.dev is forbidden")), 2, "is forbidden; ask those who run the cluster"),
        ((404, "404 page not found\n"), 2, "knows no MLJobs; have charts/platform installed"),
        ((404, says(404, 'namespaces "team" not found')), 2, "name another --namespace"),
        ((401, says(401, "Unauthorized")), 2, "log in to the cluster again"),
        ((400, says(400, 'strict decoding error: unknown field "spec.image"')), 2, 'unknown field "spec.image"'),
        ((503, says(503, "shutting down")), 75, "cannot answer (shutting down); submit it again, it is made once"),
        ((200, "<html>"), 2, "no API server; check the kubeconfig"),
    ],
)
def test_refusals_say_what_to_do(server: Server, job_file: str, refusal: Any, code: int, said: str) -> None:
    server.refusal = refusal
    assert said in error_line(call("submit", job_file, code=code))


def test_nobody_there(server: Server, job_file: str, kubeconfig: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kubeconfig.write_text(kubeconfig.read_text().replace(str(server.port), str(port)))
    line = error_line(call("submit", job_file, code=75))
    assert f"http://127.0.0.1:{port}: no answer from the API server" in line
    kubeconfig.unlink()
    assert "kubectl config get-contexts" in error_line(call("submit", job_file, code=2))


def test_a_context_that_is_not_there(job_file: str) -> None:
    assert "kubectl config get-contexts" in error_line(call("submit", job_file, "--context", "nowhere", code=2))


def test_a_broken_connection_is_waited_for(server: Server, job_file: str) -> None:
    call("submit", job_file, "--detach")
    server.statuses = [running("load"), running("fit"), succeeded()]
    n_silent = iter(range(2))
    # After the first look, and the one that begins to follow.
    server.is_silent = lambda: len(server.asked) > 2 and next(n_silent, None) is not None
    told = call("follow", "bio-kmeans").stderr
    assert told.count("no answer from the API server") == 1
    assert "the API server answers again" in told


def test_patience_ends_and_the_job_goes_on(server: Server, job_file: str) -> None:
    call("submit", job_file, "--detach")
    cluster = Cluster()
    job = cluster.get("bio-kmeans")
    server.is_silent = lambda: True
    with watching(Console(stderr=True)) as listener:
        shown = StatusShown(listener, ("load",))
        following = submitting.Following(cluster, job, listener, shown, patience_s=1.5)
        with pytest.raises(NoAnswerError, match="goes on, come back to it: daskyard follow bio-kmeans --namespace tea"):
            following.to_the_end()
    assert NoAnswerError.exit_code == 75


def test_a_job_that_is_deleted_meanwhile(server: Server, job_file: str) -> None:
    call("submit", job_file, "--detach")
    remade = {**server.jobs["bio-kmeans"], "metadata": {"name": "bio-kmeans", "namespace": "team", "uid": "uid-2"}}
    server.statuses = [running("load")]
    timer = threading.Timer(0.5, server.jobs.update, [{"bio-kmeans": remade}])
    timer.start()
    assert "deleted while it was followed" in error_line(call("follow", "bio-kmeans", code=1))
    timer.join()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_to_stop_following_leaves_the_job(server: Server, job_file: str, number: signal.Signals, code: int) -> None:
    server.statuses = [running("load")]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "submit", job_file, "--context", "here"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
    )
    deadline = time.monotonic() + 60
    while len(server.asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "goes on; come back to it: daskyard follow bio-kmeans --namespace team --context here" in stderr
    assert "Traceback" not in stderr
    assert "bio-kmeans" in server.jobs


def test_the_other_commands_do_not_wait_for_kubernetes() -> None:
    code = "import sys, jobs.cli.app; assert not {'kubernetes', 'urllib3', 'distributed'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_its_job_file_with_workers(name: str) -> None:
    path = ROOT / "examples/mljobs" / f"{name}.yaml"
    lines = path.read_text().splitlines()
    assert len(lines) <= 15
    assert sum(line.startswith("#") for line in lines) <= 1
    content = yaml.safe_load(path.read_text())
    assert content["metadata"] == {"name": name.replace("_", "-")}
    job = MLJobSpec.model_validate(content["spec"]).job_spec(content["metadata"]["name"])
    wanted = spec.load(ROOT / "examples" / f"{name}.yaml")
    assert job.model_copy(update={"run_id": None}) == wanted
    assert job.name == content["metadata"]["name"]
