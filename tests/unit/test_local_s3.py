"""The embedded S3 server: it serves, it keeps to itself, and it leaves nothing behind."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import s3fs

from jobs.local_s3 import LocalS3


def processes_that_mention(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(folder.name))
    return found


def command_lines() -> str:
    return "\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_that_mention("daskyard-held-s3-"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where the server keeps its files, so that what it leaves can be seen."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def wait_until(condition, timeout_s: float = 15.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_it_serves_inside_the_context_and_leaves_nothing_behind(temporary, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "before")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-another-account")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    before = dict(os.environ)
    with LocalS3() as s3:
        assert s3.create_bucket("demo") == s3.create_bucket("demo") == "s3://demo"
        assert os.environ["AWS_ENDPOINT_URL_S3"] == s3.endpoint
        assert "AWS_SESSION_TOKEN" not in os.environ
        fs = s3fs.S3FileSystem()
        fs.pipe_file("demo/a/b", b"12345")
        assert fs.cat_file("demo/a/b", start=1, end=3) == b"23"
        assert processes_that_mention(str(temporary))
    assert dict(os.environ) == before
    assert list(temporary.iterdir()) == []
    assert not list(Path("/tmp").glob(f"seaweedfs-*-grpc-{s3.endpoint.rsplit(':', 1)[1]}.sock"))
    assert wait_until(lambda: not processes_that_mention(str(temporary)))


def test_only_its_own_credentials_open_it_and_no_process_list_shows_them(temporary):
    with LocalS3() as s3:
        secret = s3.environment()["AWS_SECRET_ACCESS_KEY"]
        s3.create_bucket("demo")
        with pytest.raises(PermissionError):
            s3fs.S3FileSystem(key="somebody", secret="else").ls("demo")
        with pytest.raises(PermissionError):
            s3fs.S3FileSystem(anon=True).ls("demo")
        assert secret not in command_lines()
        (work,) = temporary.iterdir()
        holders = [path for path in work.iterdir() if path.is_file() and secret in path.read_text(errors="replace")]
        assert [path.name for path in holders] == ["identities.json"]
        assert all(path.stat().st_mode & 0o077 == 0 for path in [work, *holders])


def test_a_missing_bucket_is_an_error():
    with LocalS3(), pytest.raises(FileNotFoundError):
        s3fs.S3FileSystem().pipe_file("nowhere/a", b"1")


def test_of_many_that_create_an_object_exactly_one_wins():
    def create(n: int) -> bytes | None:
        data = str(n).encode()
        try:
            s3fs.S3FileSystem().pipe_file("demo/one", data, mode="create")
        except OSError as error:
            code = getattr(error.__cause__, "response", {})["Error"]["Code"]
            assert code == "PreconditionFailed"
            return None
        return data

    with LocalS3() as s3, ThreadPoolExecutor(8) as pool:
        s3.create_bucket("demo")
        won = [data for data in pool.map(create, range(8)) if data]
        assert len(won) == 1
        assert s3fs.S3FileSystem().cat_file("demo/one") == won[0]


def test_two_servers_at_once_do_not_see_each_other():
    with LocalS3() as outer:
        outer.create_bucket("demo")
        s3fs.S3FileSystem().pipe_file("demo/who", b"outer")
        with LocalS3() as inner:
            inner.create_bucket("demo")
            assert not s3fs.S3FileSystem().exists("demo/who")
        # The outer server's clients are not those of the inner one.
        assert s3fs.S3FileSystem().cat_file("demo/who") == b"outer"


def test_a_folder_keeps_its_objects_for_the_next_server(tmp_path):
    with LocalS3(tmp_path / "kept") as s3:
        s3.create_bucket("demo")
        s3fs.S3FileSystem().pipe_file("demo/big", b"x" * 9_000_000)
    with LocalS3(tmp_path / "kept"):
        assert s3fs.S3FileSystem().cat_file("demo/big") == b"x" * 9_000_000


def test_a_killed_parent_leaves_neither_server_nor_folder(tmp_path):
    code = "import time, jobs.local_s3 as l\nwith l.LocalS3(): print('ready', flush=True); time.sleep(60)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert len(processes_that_mention(str(tmp_path))) >= 2
        parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not processes_that_mention(str(tmp_path)))
    assert wait_until(lambda: not list(tmp_path.iterdir()))


def test_a_command_beside_the_server_finds_it(tmp_path):
    code = "import s3fs; print(s3fs.S3FileSystem().ls(''))"
    command = [sys.executable, "-P", "-m", "jobs.local_s3", str(tmp_path), sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "['demo']\n"


BESIDE = """
import os, signal, sys, time, urllib.error, urllib.request
def stop(number, frame):
    raise KeyboardInterrupt(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt as told:
    time.sleep(1.0)
    try:
        urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL_S3"], timeout=5)
    except urllib.error.HTTPError:
        print("served", flush=True)
    sys.exit(40 + told.args[0])
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_stop_cleans_up_beside_the_server(tmp_path, sent):
    """Who tells this process tells the command."""
    command = [sys.executable, "-P", "-m", "jobs.local_s3", str(tmp_path), sys.executable, "-c", BESIDE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(sent)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (40 + sent, "served\n", "")


def test_an_interrupt_of_a_terminal_is_told_once(tmp_path):
    """The terminal tells all processes, so the command must not hear it again from this one."""
    command = [sys.executable, "-P", "-m", "jobs.local_s3", str(tmp_path), sys.executable, "-c", BESIDE]
    process, terminal = pty.fork()
    if not process:
        os.execv(command[0], command)
    with os.fdopen(terminal, "r+b", buffering=0) as opened:
        out = b""
        while not out.endswith(b"\n"):
            out += opened.read(1000)
        opened.write(b"\x03")
        with suppress(OSError):  # EIO: nobody has it any more
            while more := opened.read(1000):
                out += more
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert (code, out.replace(b"\r", b"")) == (40 + signal.SIGINT, b"begun\n^Cserved\n")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_a_server_that_is_told_to_stop_as_it_starts_says_so_in_one_line(tmp_path, sent, code):
    objects, temporary = tmp_path / "objects", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-P", "-m", "jobs.local_s3", str(objects), "sleep", "60"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert wait_until(lambda: any(temporary.glob("*/server.log")))
        process.send_signal(sent)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("n_characters", [60, 90, 100, 107, 200])
def test_the_folder_for_temporary_files_may_have_a_long_name(tmp_path, n_characters, monkeypatch):
    """The path of a socket has 107 bytes at most, wherever in it the folder's name ends."""
    folder = tmp_path / ("x" * max(n_characters - len(str(tmp_path)), 1))
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with LocalS3() as s3:
        assert s3.create_bucket("demo") == "s3://demo"
