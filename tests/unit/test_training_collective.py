"""Members of a generation meet; one that dies on the way must not keep the others in it, and no stranger gets in."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import PrefixStore

from jobs.errors import SpecError
from jobs.training import meeting
from jobs.training.collective import CollectiveError, Form, Group, Peer
from jobs.training.meeting import MeetingPlace, MeetingStore
from tests.strangers import listeners_of, run_as_stranger

CPU = torch.device("cpu")
# torch alone waits for 10 s.
SOON_S = 5.0


def never() -> bool:
    return False


@pytest.fixture
def places() -> Iterator[tuple[MeetingPlace, MeetingPlace]]:
    places = MeetingPlace("127.0.0.1"), MeetingPlace("127.0.0.1")
    yield places
    for place in places:
        place.close()


def peers_of(places: tuple[MeetingPlace, MeetingPlace]) -> tuple[Peer, Peer]:
    return Peer.of("a", places[0], CPU), Peer.of("b", places[1], CPU)


def reached(place: MeetingPlace, timeout_s: float = 10.0) -> MeetingStore:
    return MeetingStore(place.host, place.port, place.key, timeout_s)


def meet(pool: ThreadPoolExecutor, form: Form) -> list[list[int]]:
    """What each member of a and b gets of the numbers 0 and 1 that they tell each other."""
    both = [pool.submit(Group, form, member, 60.0, never, never) for member in "ab"]
    groups = [group.result(SOON_S) for group in both]
    sums = [pool.submit(group.gather, n) for n, group in enumerate(groups)]
    gathered = [each.result(SOON_S) for each in sums]
    for group in groups:
        group.close(is_broken=False)
    return gathered


def test_who_dies_between_arriving_and_connecting_is_not_waited_for(places: tuple[MeetingPlace, MeetingPlace]) -> None:
    peers = peers_of(places)
    is_followed = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(Group, Form(1, peers), "a", 60.0, never, is_followed.is_set)
        store = reached(places[0])
        PrefixStore("meeting-1", store).add("arrived", 1)  # and no more of b
        time.sleep(0.5)
        is_followed.set()
        with pytest.raises(CollectiveError, match="generation 1 is over"):
            first.result(SOON_S)
        # What is left of the first generation still waits at the same store, and is in nobody's way.
        assert meet(pool, Form(2, peers)) == [[0, 1], [0, 1]]


def test_a_store_does_what_torch_asks_of_one(places: tuple[MeetingPlace, MeetingPlace]) -> None:
    store = reached(places[0], 0.2)
    other = store.clone()
    assert isinstance(other, MeetingStore)
    store.set("a/b", b"\x00" * 100_000)
    store.set("text", "ü")
    assert other.get("a/b") == b"\x00" * 100_000
    assert other.get("text") == "ü".encode()
    assert (store.add("n", 5), other.add("n", -7), store.get("n")) == (5, -2, b"-2")
    assert store.check(["a/b", "n"])
    assert not store.check(["a/b", "none"])
    assert (store.num_keys(), store.delete_key("n"), store.delete_key("n"), other.num_keys()) == (3, True, False, 2)
    with pytest.raises(RuntimeError, match="none was not told within 0 s"):
        store.get("none")
    with pytest.raises(RuntimeError, match="none was not told"):
        store.wait(["a/b", "none"], timedelta(seconds=0.1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.wait, ["late"], timedelta(seconds=30))
        store.set("late", b"")
        waiting.result(SOON_S)


def test_an_address_of_another_machine_is_refused_with_the_remedy() -> None:
    with pytest.raises(SpecError, match=r"192\.0\.2\.1, the address of a worker, is none .*; start workers without"):
        MeetingPlace("192.0.2.1")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_members_meet_over_ipv6_as_well() -> None:
    try:
        place = MeetingPlace("::1")
    except SpecError as error:
        pytest.skip(f"needs IPv6 on loopback ({error})")
    assert reached(place).add("n", 1) == 1
    place.close()


def test_a_store_that_is_lost_is_said_as_torch_says_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        knock = pool.submit(MeetingStore, "127.0.0.1", listener.getsockname()[1], "00" * 32, 5.0)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(bytes(32))
            theirs = connection.recv(64)[:32]
            connection.sendall(meeting._prove("00" * 32, b"place", bytes(32), theirs))
            store = knock.result(SOON_S)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the store of the first member is lost"):
                store.add("arrived", 0)


def test_a_member_finds_out_that_a_stranger_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger, ThreadPoolExecutor(1) as pool:
        knock = pool.submit(MeetingStore, "127.0.0.1", stranger.getsockname()[1], "00" * 32, 5.0)
        connection, _ = stranger.accept()
        with connection:
            connection.sendall(bytes(32))
            connection.recv(64)
            connection.sendall(bytes(32))
            with pytest.raises(ConnectionError, match="somebody else answers"):
                knock.result(SOON_S)


@pytest.mark.parametrize(
    "said", [b"", b"\x00", b"x" * 64, b"x" * 63, b"\x07\x3c\x85\x7f\x0b" * 1000, b"GET / HTTP/1.1\r\n\r\n" * 10]
)
def test_who_does_not_know_the_key_is_sent_away(places: tuple[MeetingPlace, MeetingPlace], said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", places[0].port), timeout=SOON_S) as stranger:
        assert len(stranger.recv(32)) == 32
        with contextlib.suppress(OSError):  # it may have closed the connection by then
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
    store = reached(places[0])
    assert store.num_keys() == 0
    with pytest.raises(ConnectionError):
        MeetingStore("127.0.0.1", places[0].port, "00" * 32, 5.0)
    assert store.num_keys() == 0


def test_strangers_who_stay_do_not_keep_members_out(
    places: tuple[MeetingPlace, MeetingPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_MAX_STRANGERS", 4)
    strangers = [socket.create_connection(("127.0.0.1", places[0].port), timeout=SOON_S) for _ in range(50)]
    try:
        with ThreadPoolExecutor(3) as pool:
            assert meet(pool, Form(1, peers_of(places))) == [[0, 1], [0, 1]]
        assert len(places[0]._strangers) <= 4
    finally:
        for stranger in strangers:
            stranger.close()


# What torch itself offers to whoever reaches one of its own stores, and what does not care for any protocol.
IMPORTS = """
    import socket, sys
    from datetime import timedelta
    from torch.distributed import PrefixStore, TCPStore
"""
STRANGER = """
    host, ports = sys.argv[1], [int(port) for port in sys.argv[2:]]
    for port in ports:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except ConnectionRefusedError:
            print("refused")
            continue
        try:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=1))
            store.set("filled", b"x" * (1 << 20))
            for generation in range(1, 4):
                PrefixStore(f"meeting-{generation}", store).add("arrived", 1)
                for rank in range(2):
                    PrefixStore(f"generation-{generation}", store).set(f"0/{rank}", b"spoilt")
            print("altered")
        except Exception as error:
            print(f"open, but {type(error).__name__}")
"""


def stranger_at(host: str, *ports: int) -> list[str]:
    """What another user brings about at these ports: refused, open or altered."""
    return run_as_stranger(IMPORTS, STRANGER, host, *ports)


def test_another_user_gets_nothing_into_a_meeting_nor_through_another_interface(
    places: tuple[MeetingPlace, MeetingPlace],
) -> None:
    ports = [place.port for place in places]
    # All of 127.0.0.0/8 is this machine; what listens on every interface listens on 127.0.0.2.
    assert stranger_at("127.0.0.2", *ports) == ["refused"] * 2
    assert all(line.startswith("open, but ") for line in stranger_at("127.0.0.1", *ports))
    assert reached(places[0]).num_keys() == 0
    with ThreadPoolExecutor(3) as pool:
        for generation in range(1, 4):
            assert meet(pool, Form(generation, peers_of(places))) == [[0, 1], [0, 1]]


# In a network of its own, with a second interface, a process like a rank's, and a stranger at each of its addresses.
ELSEWHERE = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from jobs.training.meeting import MeetingPlace
    from tests.unit.test_training_collective import stranger_at

    lo, other = MeetingPlace("127.0.0.1"), MeetingPlace("192.0.2.7")
    print(stranger_at("192.0.2.7", lo.port), stranger_at("127.0.0.1", other.port))
    print(stranger_at("192.0.2.7", other.port))
    print(lo._values, other._values)
"""


def test_another_user_is_refused_through_another_interface() -> None:
    network = (
        "ip link set lo up && ip link add other0 type veth peer name other1 && "
        "ip address add 192.0.2.7/24 dev other0 && ip link set other0 up"
    )
    try:
        subprocess.run(["unshare", "--net", "sh", "-c", network], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root, unshare and ip, to make a network with a second interface ({error})")
    root = str(Path(__file__).parents[2])
    inside = ["sh", "-c", f'{network} && exec "$0" "$@"', sys.executable, "-c", textwrap.dedent(ELSEWHERE), root]
    done = subprocess.run(["unshare", "--net", *inside], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    refused, open_, values = done.stdout.splitlines()
    assert refused == "['refused'] ['refused']"
    assert open_.startswith("['open, but ")
    assert values == "{} {}"


def test_a_rank_listens_on_its_own_address_alone(places: tuple[MeetingPlace, MeetingPlace]) -> None:
    with ThreadPoolExecutor(3) as pool:
        both = [pool.submit(Group, Form(1, peers_of(places)), member, 60.0, never, never) for member in "ab"]
        groups = [group.result(SOON_S) for group in both]  # with gloo's own ports
        listening = {address for address, _ in listeners_of(os.getpid())}
        for group in groups:
            group.close(is_broken=False)
    assert listening == {"127.0.0.1"}
