"""More shards than stay open: opened when they are read, the same images as ever."""

import gc
import os

import pytest
import torch

from data.errors import UserError
from data.prepare import prepare
from data.read import split_images
from data.read.index import load_index
from data.read.stream import Stream
from tests.servers import serving

MOST = 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Fifteen shards of 100 images to train on."""
    monkeypatch.setattr(split_images, "_MOST_OPEN", MOST)
    prepare("digits", tmp_path / "set", record_images=50, shard_records=2, image_size=8, progress=False)
    return tmp_path / "set"


def open_files(folder):
    gc.collect()
    found = (
        os.readlink(f"/proc/self/fd/{each}")
        for each in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{each}")
    )
    return sum(str(folder) in path for path in found)


def stream_of(root, **options):
    return Stream(load_index(root), root, "train", patch_size=4, seed=0, memory_bytes=0, **options)


def test_they_are_opened_when_they_are_read_and_few_stay_open(folder, monkeypatch):
    stream, position_B = stream_of(folder), torch.arange(300)
    assert open_files(folder) == 0
    found = stream.read(position_B)
    assert open_files(folder) == MOST
    monkeypatch.setattr(split_images, "_MOST_OPEN", 100)
    whole = stream_of(folder)
    assert open_files(folder) == MOST + 15
    expected = whole.read(position_B)
    assert torch.equal(found.x_BLD, expected.x_BLD)
    assert torch.equal(found.label_B, expected.label_B)


def test_elsewhere_as_well(folder):
    here = Stream(load_index(folder), folder, "train", patch_size=4, seed=None, memory_bytes=0)
    with serving(folder) as server:
        index = load_index(server.address, "digits")
        far = Stream(index, server.address, "train", patch_size=4, seed=None, memory_bytes=0)
        assert torch.equal(far.read(torch.arange(700)).x_BLD, here.read(torch.arange(700)).x_BLD)


def test_one_that_does_not_fit_is_refused_when_it_is_read(folder):
    stream = stream_of(folder)
    path = folder / "train-000014.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"train-000014\.tar: has \d+ bytes, the index says"):
        stream.read(torch.arange(1437))
