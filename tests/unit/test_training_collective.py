"""Members of a generation meet; one that dies on the way must not keep the others in it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._C._distributed_c10d import PrefixStore, TCPStore

from jobs.training.collective import CollectiveError, Form, Group, Store

CPU = torch.device("cpu")
# torch alone waits for 10 s.
SOON_S = 5.0


def never() -> bool:
    return False


def test_who_dies_between_arriving_and_connecting_is_not_waited_for() -> None:
    stores = Store("127.0.0.1"), Store("127.0.0.1")
    peers = stores[0].peer("a", CPU), stores[1].peer("b", CPU)
    is_followed = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(Group, Form(1, peers), "a", 60.0, never, is_followed.is_set)
        mine = TCPStore("127.0.0.1", peers[0].port, is_master=False, wait_for_workers=False)
        PrefixStore("meeting-1", mine).add("arrived", 1)  # and no more of b
        time.sleep(0.5)
        is_followed.set()
        with pytest.raises(CollectiveError, match="generation 1 is over"):
            first.result(SOON_S)
        # What is left of the first generation still waits at the same store, and is in nobody's way.
        both = [pool.submit(Group, Form(2, peers), member, 60.0, never, never) for member in "ab"]
        groups = [group.result(SOON_S) for group in both]
        sums = [pool.submit(group.gather, n) for n, group in enumerate(groups)]
        assert [each.result(SOON_S) for each in sums] == [[0, 1], [0, 1]]
        for group in groups:
            group.close(is_broken=False)
