"""Nobody but its run enters the local cluster: another user of the machine, and another program of the same user."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import dask
import pytest
from distributed import Client, SpecCluster

from jobs.cluster import connected
from jobs.errors import SpecError
from jobs.local_cluster import loopback

NOBODY = 65534
# What an attacker does: connect as a client, or talk to a worker and a nanny as a scheduler does. It prints "in" for
# each way that answers, and what refused it for each other.
ATTACK = """
import asyncio, os, sys
from distributed import Client
from distributed.core import rpc
from distributed.protocol.pickle import dumps
from distributed.security import Security

uid, *addresses = sys.argv[1:]
os.setuid(int(uid))
os.environ["HOME"] = "/nonexistent"

def taken():
    return os.getpid()

async def run(address, security):
    async with asyncio.timeout(10):
        kind, args = ("tls", security.get_connection_args("client")) if security else ("tcp", {})
        place = address.split("://")[1]
        async with rpc(f"{kind}://{place}", connection_args=args, timeout=5) as server:
            op = "run_function" if address == addresses[0] else "run"
            return await getattr(server, op)(function=dumps(taken), args=dumps(()), kwargs=dumps({}))

def main():
    for security in (None, Security.temporary()):
        for address in addresses:
            try:
                print("in", address, asyncio.run(run(address, security)))
            except BaseException as error:
                print("refused", address, type(error).__name__)
        try:
            kind, place = ("tls" if security else "tcp"), addresses[0].split("://")[1]
            with Client(f"{kind}://{place}", security=security, timeout=5) as client:
                print("in", client.submit(taken).result(timeout=10))
        except BaseException as error:
            print("refused", "client", type(error).__name__)

main()
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connected(2) as client:
        yield client


def addresses_of(client: Client) -> list[str]:
    """Scheduler, workers and nannies: whatever runs what it is sent."""
    cluster = client.cluster
    assert isinstance(cluster, SpecCluster)
    nannies = cluster.workers.values()
    return [cluster.scheduler_address, *(n.worker_address for n in nannies), *(n.address for n in nannies)]


def attack(uid: int, addresses: list[str]) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", ATTACK, str(uid), *addresses],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.parametrize("uid", [NOBODY, os.getuid()], ids=["another user", "the same user without the certificate"])
def test_whoever_has_no_certificate_of_the_run_runs_no_code_on_scheduler_worker_or_nanny(
    client: Client, uid: int
) -> None:
    if os.getuid() != 0 and uid != os.getuid():
        pytest.skip("needs root, which can become another user")
    addresses = addresses_of(client)
    tried = attack(uid, addresses)
    assert len(tried) == 2 * (len(addresses) + 1)
    assert all(line.startswith("refused") for line in tried), tried
    assert client.submit(sum, [1, 2]).result(timeout=60) == 3  # and it works on


def test_the_run_itself_reaches_all_of_them_encrypted(client: Client) -> None:
    assert all(address.startswith("tls://") for address in addresses_of(client))
    assert len(client.run(os.getpid)) == len(client.run(os.getpid, nanny=True)) == 2


def test_no_port_of_the_cluster_is_bound_to_another_address_than_loopback(client: Client) -> None:
    ports = {urlsplit(address).port for address in addresses_of(client)}
    listening = [
        (line.split()[1], int(line.split()[1].split(":")[1], 16))
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    ours = [address for address, port in listening if port in ports]
    assert len(ours) == len(ports)
    assert {address.split(":")[0] for address in ours} == {"0100007F"}


def test_the_dashboard_answers_below_its_secret_path_alone(client: Client) -> None:
    link = client.dashboard_link
    place, secret = f"http://{urlsplit(link).netloc}", urlsplit(link).path.split("/")[1]
    assert len(secret) >= 20
    with urllib.request.urlopen(link, timeout=30) as page:
        assert page.status == 200
    pages = ("", "status", "workers", "graph", "sitemap.json", "info/main/workers.html", "json/counts.json", "metrics")
    pages += ("static/js/bokeh.min.js", "status/ws", "eventstream", "health", f"{secret}x/status", f"x/{secret}/status")
    for page in pages:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{place}/{page}", timeout=30)


def test_each_of_two_clusters_at_once_has_its_own_dashboard(client: Client) -> None:
    with connected(1) as other, dask.config.set({"distributed.dashboard.link": "{scheme}://{host}:{port}/status"}):
        assert urlsplit(other.dashboard_link).path.count("/") == 2
        assert other.dashboard_link != client.dashboard_link
        for link in (client.dashboard_link, other.dashboard_link):
            with urllib.request.urlopen(link, timeout=30) as page:
                assert page.status == 200


def test_workers_have_no_pages(client: Client) -> None:
    places = client.run(lambda dask_worker: f"http://{dask_worker.http_server.address}:{dask_worker.http_server.port}")
    for place in places.values():
        for page in ("metrics", "health", "status", ""):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{place}/{page}", timeout=30)


def test_the_key_is_in_no_argument_environment_or_file_of_its_processes(client: Client, tmp_path: Path) -> None:
    cluster = client.cluster
    assert isinstance(cluster, SpecCluster)
    key = cluster.security.tls_worker_key.encode()
    secret = key.splitlines()[1]
    for pid in (os.getpid(), *client.run(os.getpid).values()):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert secret.decode() not in repr(cluster.security)
    with dask.config.set({"temporary-directory": str(tmp_path)}), connected(1) as other:
        other.submit(sum, [1, 2]).result(timeout=60)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in files if b"PRIVATE KEY" in path.read_bytes()]


def test_what_workers_spill_lies_in_a_folder_that_nobody_else_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with dask.config.set({"temporary-directory": str(tmp_path)}), connected(1) as client:
            [place] = client.run(lambda dask_worker: dask_worker.local_directory).values()
            [folder] = tmp_path.iterdir()
            assert place.startswith(str(folder))
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


IPV6 = """
import sys
from jobs.cluster import connected
if __name__ == "__main__":
    with connected(1) as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        import urllib.request
        print(client.scheduler.address, urllib.request.urlopen(client.dashboard_link, timeout=30).status)
"""


def in_network(setup: str, program: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a network of its own, as `setup` makes it."""
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", f'{setup}; exec "$@"', "sh", sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    if os.getuid() != 0 or subprocess.run(["unshare", "--net", "ip", "link"], capture_output=True).returncode:
        pytest.skip("needs root, unshare and ip, to make a network without IPv4")
    path = tmp_path / "program.py"
    path.write_text(IPV6)
    return path


def test_a_machine_whose_loopback_is_ipv6_alone_has_a_cluster(program: Path) -> None:
    found = in_network("ip link set lo up && ip addr del 127.0.0.1/8 dev lo", program)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("tls://[::1]:")
    assert found.stdout.split()[-1] == "200"


def test_a_machine_without_loopback_is_told_so_in_one_line(program: Path) -> None:
    found = in_network("true", program)
    assert "SpecError: cluster: this machine has no loopback address" in found.stderr


def test_loopback_is_ipv4_where_there_is_one() -> None:
    try:
        assert loopback() == "127.0.0.1"
    except SpecError:
        pytest.skip("needs a loopback address")
