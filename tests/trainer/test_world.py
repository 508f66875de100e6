"""How ranks agree, with messages that go through queues."""

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from types import SimpleNamespace

import pytest
import torch

from trainer.ranks import world
from trainer.ranks.world import World


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8, 13])
def test_every_rank_learns_the_largest_of_each_value(monkeypatch, size):
    queues, here, sent = defaultdict(Queue), threading.local(), []

    def isend(tensor, dst, group):
        sent.append(dst)
        queues[here.rank, dst].put(tensor.clone())
        return SimpleNamespace(wait=lambda: None)

    def recv(tensor, src, group):
        tensor.copy_(queues[src, here.rank].get(timeout=60))

    def agree(rank):
        here.rank = rank
        return World(rank, size, rank, torch.device("cpu")).max_over_ranks(rank, -rank, int(rank == size // 2))

    monkeypatch.setattr(world, "dist", SimpleNamespace(isend=isend, recv=recv))
    with ThreadPoolExecutor(size) as pool:
        assert [*pool.map(agree, range(size))] == [[size - 1, 0, 1]] * size
    assert len(sent) == size * (size - 1).bit_length()
