"""Images of tar files as a stream: the same from the disk, from web servers and from S3, and what goes wrong there."""

import shutil
import threading

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.order.order import Woven
from data.order.parts import Whole
from data.order.weave import Weave
from data.prepare.verify import verify
from data.read.index import load_index
from data.read.stream import Stream, expected, prefetch
from data.sources.images import decode, resize
from data.storage import objects
from data.storage.cache import BlockCache
from data.storage.storage import storage_of
from data.tars.images import TarImages
from data.tars.indexing import index_tars
from data.tars.manifest import TarIndex
from tests.data.tars.conftest import write_tars
from tests.servers import s3_of, serving

WEAVE = Weave(lanes=4, block=8, window=2)
FROM_SHARDS = {"memory_bytes": 0}


def open_index(root, tmp_path, image_size=8, test_shards=None, name="index") -> TarIndex:
    manifest = index_tars(
        f"{root}/0000{{0..2}}.tar",
        str(tmp_path / name),
        test_shards=test_shards or f"{root}/00003.tar",
        weave=WEAVE,
        progress=False,
    )
    return TarIndex(manifest, str(tmp_path / name), image_size)


def stream_of(index, split="train", seed=0, cache=None, **options) -> Stream:
    return Stream(index, "", split, patch_size=4, seed=seed, cache=cache, **{**FROM_SHARDS, **options})


def all_of(stream, batch=50, workers=0):
    reads = expected(stream, torch.arange(stream.images).split(batch), depth=2)
    batches = list(prefetch(stream.read, reads, workers))
    return torch.cat([each.x_BLD for each in batches]), torch.cat([each.label_B for each in batches])


def assert_same(one, other):
    for here, there in zip(one, other, strict=True):
        assert torch.equal(here, there)


@pytest.fixture
def local(tars, tmp_path):
    return open_index(tars, tmp_path, name="local")


@pytest.mark.parametrize("size", [8, 16])
def test_images_are_those_of_the_files(tmp_path, size):
    root = write_tars(tmp_path / "set", suffix="jpg", size=12)
    index = open_index(root, tmp_path, image_size=size)
    images = TarImages(index, "train", Whole(300), BlockCache(tmp_path, 0))
    found_NHWC, label_N = images.read(np.arange(300))
    from webdataset import WebDataset

    records = list(WebDataset(f"{root}/{{00000..00002}}.tar", shardshuffle=False))
    assert label_N.tolist() == [int(record["cls"]) for record in records]
    for image_HWC, record in zip(found_NHWC, records, strict=True):
        assert np.array_equal(image_HWC, resize(decode(record["jpg"]), size))


def test_in_memory_the_order_is_as_ever_and_else_it_is_woven(local):
    in_memory, from_files = stream_of(local, memory_bytes=2**20), stream_of(local)
    assert (in_memory._order.law, in_memory.look_ahead) == ("permuted", 0)
    assert (from_files._order.law, from_files.look_ahead) == ("woven from 4 lanes, windows of 2 blocks of 8 images", 64)
    position_B = torch.arange(600)
    assert not torch.equal(in_memory.order(position_B), from_files.order(position_B))
    here, there = stream_of(local, seed=None, memory_bytes=2**20), stream_of(local, seed=None)
    assert_same(all_of(here), all_of(there))


@pytest.mark.parametrize("workers", [0, 3])
def test_http_gives_what_the_disk_gives(web, local, tmp_path, workers):
    assert_same(all_of(stream_of(open_index(web.address, tmp_path)), workers=workers), all_of(stream_of(local)))


def test_a_server_without_parts_gives_whole_files_once(tars, local, tmp_path):
    cache = BlockCache(tmp_path / "cache", 2**30)
    with serving(tars, gives_ranges=False) as server:
        index = open_index(server.address, tmp_path)
        assert_same(all_of(stream_of(index, cache=cache)), all_of(stream_of(local)))
        server.asked.clear()
        assert_same(all_of(stream_of(index, cache=cache)), all_of(stream_of(local)))
    assert not server.asked


def test_s3_gives_what_the_disk_gives(s3, local, tmp_path):
    index = open_index(s3, tmp_path)
    assert index.checksum == local.checksum
    assert_same(all_of(stream_of(index)), all_of(stream_of(local)))


def test_an_index_may_lie_beside_its_files(s3, tars, local):
    beside = index_tars(f"{s3}/0000{{0..2}}.tar", s3, test_shards=f"{s3}/00003.tar", weave=WEAVE, progress=False)
    assert len(storage_of(s3).names()) == 4 + 4 + 1
    assert_same(all_of(stream_of(TarIndex(beside, s3, 8))), all_of(stream_of(local)))


def test_an_index_may_lie_in_s3(s3, tars, local):
    manifest = index_tars(f"{tars}/0000{{0..2}}.tar", "s3://bucket/index", test_shards=f"{tars}/00003.tar", weave=WEAVE)
    index = TarIndex(manifest, "s3://bucket/index", 8)
    assert_same(all_of(stream_of(index)), all_of(stream_of(local)))


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_our_own_shards_may_lie_in_s3(s3, digits, tmp_path, monkeypatch, memory_bytes):
    """Read in blocks, and checked as on the disk; the order is woven only where memory does not hold them."""
    index, root = digits
    with s3_of(root) as environment:
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL"])
        objects._store.cache_clear()
        far = load_index("s3://bucket/set", "digits")
        assert far == index
        cache = BlockCache(tmp_path / "cache", 2**30)
        streams = [
            Stream(index, where, "train", patch_size=4, seed=None, memory_bytes=memory_bytes, cache=cache)
            for where in (root, "s3://bucket/set")
        ]
        assert_same(*(all_of(stream) for stream in streams))
        for seed, law in ((None, "file"), (0, "permuted" if memory_bytes else Woven(1437, 0, Weave()).law)):
            stream = Stream(index, "s3://bucket/set", "train", patch_size=4, seed=seed, memory_bytes=memory_bytes)
            assert stream._order.law == law
        assert verify("s3://bucket/set") == []


@pytest.mark.parametrize("ranks", [2, 16])
def test_each_block_is_fetched_once_by_the_ranks_of_a_node(web, tmp_path, ranks):
    """All read all that they need, and then once more: what one fetched, the others have."""
    index = open_index(web.address, tmp_path)
    web.asked.clear()
    streams = [stream_of(index, cache=BlockCache(tmp_path / "cache", 2**30)) for _ in range(ranks)]
    position_B = torch.arange(288)  # of whole lanes
    for _ in range(2):
        threads = [
            threading.Thread(target=lambda s=s, r=r: [s.read(p) for p in position_B[r::ranks].split(20)])
            for r, s in enumerate(streams)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(web.asked.values()) == len(web.asked) <= 36 + 3  # blocks; some lie in two files
    assert {stop - start for _, start, stop in web.asked} != set()


def test_our_own_shards_are_fetched_in_blocks(digits, tmp_path):
    index, root = digits
    with serving(root) as server:
        whole = load_index(server.address, "digits")
        cache = BlockCache(tmp_path / "cache", 2**30)
        stream = Stream(whole, server.address, "train", patch_size=4, seed=None, memory_bytes=0, cache=cache)
        server.asked.clear()
        found_BLD = stream.read(torch.arange(256)).x_BLD
        assert sum(server.asked.values()) <= 256 / 16 + 4  # where records end, blocks do
        server.faults = [404] * 500
        with pytest.raises(UserError, match="cannot be read.*--resume auto goes on"):
            stream.read(torch.arange(256, 300))
        assert not stream.damaged
    here = Stream(index, root, "train", patch_size=4, seed=None, memory_bytes=0)
    assert torch.equal(found_BLD, here.read(torch.arange(256)).x_BLD)


@pytest.mark.parametrize("gives_ranges", [True, False])
def test_what_a_full_disk_lets_go_is_fetched_once_more_at_most(tars, local, tmp_path, monkeypatch, gives_ranges):
    with serving(tars, gives_ranges) as server:
        stream = stream_of(open_index(server.address, tmp_path), cache=BlockCache(tmp_path / "cache", 2**30))
        server.asked.clear()
        stream.expect(torch.arange(128))
        for block in stream._source._blocks._held.values():
            block.result()
        fetched = sum(server.asked.values())
        shutil.rmtree(tmp_path / "cache")
        monkeypatch.setattr(BlockCache, "_keep", lambda *_: None)  # nothing stays from now on
        assert torch.equal(stream.read(torch.arange(128)).x_BLD, stream_of(local).read(torch.arange(128)).x_BLD)
        runs = {id(run) for block in stream._source._blocks._held.values() for run, _, _ in block.result().places}
        assert sum(server.asked.values()) <= 2 * max(fetched, len(runs)) + 16


def test_a_whole_file_is_one_request(tars):
    with serving(tars) as server, storage_of(server.address).open("00000.tar") as file:
        assert file.read() == (tars / "00000.tar").read_bytes()
        assert sum(server.asked.values()) == 1


def test_a_failing_server_is_asked_again(faulty, local, tmp_path):
    server, root = faulty
    index = open_index(root, tmp_path)
    server.faults = [500, 503, "cut", 0.3, 500]
    assert_same(all_of(stream_of(index)), all_of(stream_of(local)))
    assert server.faults == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(500, "the server answers 500"), (403, "the server refuses it"), (404, "no such object"), ("cut", "broke off")],
)
def test_a_server_that_goes_on_failing_ends_the_run(faulty, tmp_path, fault, reason):
    server, root = faulty
    stream = stream_of(open_index(root, tmp_path))
    server.faults = [fault] * 500
    with pytest.raises(UserError, match=rf"0000\d\.tar.*{reason}.*--resume auto goes on"):
        stream.read(torch.arange(8))


def test_wrong_bytes_are_damage_and_are_named(faulty, local, tmp_path, caplog):
    server, root = faulty
    index = open_index(root, tmp_path)
    server.faults = ["wrong"]
    stream = stream_of(index, seed=None)
    found_BLD = stream.read(torch.arange(8)).x_BLD
    sound_BLD = stream_of(local, seed=None).read(torch.arange(9)).x_BLD
    assert sorted(stream.damaged) == list(range(8))
    assert stream.damaged[3].startswith("train image 3 (00000.tar, image 3 of its index): ")
    assert torch.equal(found_BLD, sound_BLD[8].expand(8, -1, -1))  # the first of the next block stands in
    assert "image 8 stands in" in caplog.text
    assert "8, more than data.max_damaged=5 (first: train image 0" in str(stream.damaged_error(5))


def test_a_file_that_changed_is_refused_by_name(tars, tmp_path):
    copy = shutil.copytree(tars, tmp_path / "copy")
    with serving(copy) as server:
        for name, root in (("local", copy), ("web", server.address)):
            index = open_index(root, tmp_path, name=name)
            with (copy / "00001.tar").open("r+b") as file:
                first = file.read(1)
                file.seek(0)
                file.write(b"x")
            with pytest.raises(UserError, match=r"00001\.tar has changed since it was indexed: index the shards again"):
                all_of(stream_of(index))
            with (copy / "00001.tar").open("r+b") as file:
                file.write(first)


def test_blocks_are_not_held_longer_than_needed(local):
    stream = stream_of(local)
    all_of(stream)
    assert len(stream._source._blocks) <= 1  # the last one, if it is not full


def test_images_kept_back_come_from_the_same_files(tars, tmp_path):
    manifest = index_tars(f"{tars}/*.tar", str(tmp_path / "index"), weave=WEAVE, progress=False)
    index = TarIndex(manifest, str(tmp_path / "index"), 8)
    train, test = (all_of(stream_of(index, split, seed=None)) for split in ("train", "test"))
    plain = open_index(tars, tmp_path, name="plain")
    known = torch.cat([all_of(stream_of(plain, split, seed=None))[0] for split in ("train", "test")])
    both = torch.cat([train[0], test[0]])
    assert len(both) == len(known) == 400
    assert torch.equal(both.flatten(1).sum(1).sort().values, known.flatten(1).sum(1).sort().values)


def test_a_bucket_that_is_not_there_is_named(s3, tmp_path):
    with pytest.raises(UserError, match=r"s3://other/0\.tar cannot be read \(no such bucket\)"):
        index_tars("s3://other/0.tar", str(tmp_path / "index"), progress=False)


@pytest.mark.parametrize("kept_bytes", [0, 2**30])
def test_what_a_disk_of_this_machine_has_is_not_held_in_memory(web, local, tmp_path, kept_bytes):
    far = open_index(web.address, tmp_path)
    for index, is_held in ((local, False), (far, not kept_bytes)):
        stream = stream_of(index, cache=BlockCache(tmp_path / "cache", kept_bytes))
        stream.expect(torch.arange(32))
        blocks = [block.result() for block in stream._source._blocks._held.values()]
        assert blocks
        assert {run.held is not None for block in blocks for run, _, _ in block.places} == {is_held}
        assert_same(all_of(stream), all_of(stream_of(local)))
