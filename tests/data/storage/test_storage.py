"""The seam between prepared shards and where they lie: another kind of place is one class."""

import io
import json
from pathlib import Path

import pytest
import torch

from biglearn_vae.find_images import find_data
from data.errors import UserError
from data.prepare.verify import verify
from data.read.config import DataConfig
from data.read.index import load_index, read_index
from data.read.stream import Stream
from data.storage.storage import STORAGES, LocalFolder, is_there
from launch.prepare import main as prepare_main
from launch.train import dry_run
from trainer.config import load_config


class MemoryFile(io.BytesIO):
    @property
    def size(self) -> int:
        return len(self.getbuffer())

    def read_into(self, content: memoryview, offset: int) -> int:
        part = self.getbuffer()[offset : offset + len(content)]
        content[: len(part)] = part
        return len(part)


class Memory:
    """All files of a folder of this machine, read once."""

    folders: dict[str, dict[str, bytes]] = {}

    def __init__(self, root: str):
        if root not in self.folders:
            raise FileNotFoundError(2, "no such folder", root)
        self.files = self.folders[root]

    def open(self, name: str) -> MemoryFile:
        if name not in self.files:
            raise FileNotFoundError(2, "no such object", name)
        return MemoryFile(self.files[name])

    def names(self) -> list[str]:
        return [*self.files]

    def write(self, name: str, content: bytes) -> None:
        self.files[name] = content


@pytest.fixture
def remote(digits_shards, monkeypatch) -> str:
    """An address under which the digits lie in memory."""
    monkeypatch.setitem(STORAGES, "memory", Memory)
    files = {path.name: path.read_bytes() for path in Path(digits_shards).iterdir() if path.is_file()}
    monkeypatch.setitem(Memory.folders, "memory://digits", files)
    return "memory://digits"


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_shards_are_read_alike_wherever_they_lie(remote, digits_shards, memory_bytes):
    assert DataConfig(source="digits", shards=remote).shards == remote
    here, there = (
        Stream(load_index(root, "digits"), root, "test", patch_size=8, seed=None, memory_bytes=memory_bytes)
        for root in (digits_shards, remote)
    )
    one, other = (stream.read(torch.arange(40)) for stream in (here, there))
    assert torch.equal(one.x_BLD, other.x_BLD)
    assert torch.equal(one.index_B, other.index_B)
    assert verify(remote) == []


def test_what_is_missing_elsewhere_is_said_as_here(remote):
    name = load_index(remote).splits["test"][0].name
    del Memory.folders[remote][name]
    with pytest.raises(UserError, match=f"{name}: no such object"):
        load_index(remote)
    del Memory.folders[remote]["index.json"]
    with pytest.raises(UserError, match=r"index\.json does not exist"):
        read_index(remote)


def test_a_file_of_a_folder_is_written_whole(tmp_path):
    folder = LocalFolder(tmp_path)
    folder.write("part", b"0123456789")
    with folder.open("part") as file:
        content = bytearray(4)
        assert (file.size, file.read_into(memoryview(content), 8), bytes(content)) == (10, 2, b"89\0\0")
    assert folder.names() == ["part"]


def test_programs_find_shards_wherever_they_lie(remote, tmp_path, capsys):
    config = load_config("configs/digits.yaml", [f"data.shards={remote}", "data.image_size=32", "data.patch_size=8"])
    assert find_data(config.data, tmp_path).shards == remote
    assert is_there(remote)
    assert not is_there("memory://absent")
    assert not is_there(tmp_path / "absent")
    assert prepare_main(["verify", remote]) == 0
    assert "is whole" in capsys.readouterr().out
    assert dry_run(config) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images_per_epoch"] == 1437
