"""What a node keeps of files from elsewhere."""

import threading
import time
from pathlib import Path

import pytest

from data.errors import UserError
from data.storage.blocks import Blocks
from data.storage.cache import BlockCache


@pytest.fixture
def cache(tmp_path):
    return BlockCache(tmp_path / "blocks", 10_000)


def files(cache) -> list[Path]:
    return [path for path in cache._folder.rglob("*") if path.is_file() and path.parent.name != "locks"]


def give(size, asked):
    def fetch():
        asked.append(size)
        return memoryview(bytes(size))

    return fetch


def test_what_was_fetched_is_kept(cache):
    asked = []
    for _ in range(3):
        assert len(cache.get("a", give(100, asked))) == 100
    assert len(cache.get("a", give(100, asked), 10, 15)) == 5
    assert asked == [100]
    assert bytes(BlockCache(cache._folder, 10_000).get("a", give(0, asked))) == bytes(100)  # of another process


def test_the_least_recently_used_goes(cache):
    asked = []
    for number in range(40):
        cache.get(f"{number}", give(1000, asked))
        cache.get("0", give(1000, asked))  # used all the time
        assert sum(path.stat().st_size for path in files(cache)) <= 11_000
    assert len(asked) == 40
    cache.get("1", give(1000, asked))
    assert len(asked) == 41


def test_what_cannot_be_kept_is_still_given(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.storage.cache.write_aside", full)
    assert len(cache.get("a", give(100, []))) == 100
    assert files(cache) == []
    (cache._folder.parent / "file").touch()
    with pytest.raises(UserError, match="name another folder as data.cache, or set data.cache_bytes=0"):
        BlockCache(cache._folder.parent / "file", 1).get("a", give(7, []))
    assert len(BlockCache(cache._folder.parent / "file", 0).get("a", give(7, []))) == 7


def test_what_several_want_at_once_is_fetched_once(cache):
    asked, together = [], threading.Barrier(8)

    def fetch():
        asked.append(1)
        time.sleep(0.1)
        return memoryview(b"content")

    def get():
        together.wait()
        found.append(bytes(cache.get("a", fetch)))

    found: list[bytes] = []
    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(asked), found) == (1, [b"content"] * 8)


def test_what_waits_for_a_server_that_failed_is_not_fetched():
    asked = []

    def fetch(number):
        asked.append(number)
        time.sleep(0.05)
        raise UserError("out of reach")

    blocks = Blocks(fetch, most=1000)
    blocks.expect(range(500))
    for number in (0, 499):
        with pytest.raises(UserError, match="out of reach"):
            blocks.take(number, times=1)
    assert len(asked) <= 32  # those that were under way
    blocks.close()
