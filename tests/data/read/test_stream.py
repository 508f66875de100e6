import errno
import os
import shutil
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from data.errors import UserError
from data.patches import unpatchify
from data.prepare import prepare
from data.read.config import DataConfig
from data.read.index import load_index
from data.read.stream import Stream, prefetch
from data.sources import SOURCES
from data.sources.digits import Digits
from data.sources.samples import Samples


def make(digits, split="train", seed=0, **options):
    index, root = digits
    return Stream(index, root, split, patch_size=4, seed=seed, **options)


def assert_same(one, two):
    assert torch.equal(one.x_BLD, two.x_BLD)
    assert torch.equal(one.index_B, two.index_B)
    assert torch.equal(one.label_B, two.label_B)


def test_the_order_never_changes(digits):
    """Golden: a change here would make every resumed run see other images."""
    assert make(digits).order(torch.arange(8)).tolist() == [356, 1263, 139, 632, 1251, 1107, 780, 70]


@pytest.mark.parametrize("seed", [0, 1, None])
def test_each_image_comes_once_an_epoch(digits, seed):
    stream = make(digits, seed=seed)
    order = stream.order(torch.arange(3 * stream.images)).view(3, stream.images)
    assert torch.equal(order.sort(dim=1).values, torch.arange(stream.images).expand(3, -1))


def test_epochs_and_seeds_differ_and_none_is_file_order(digits):
    stream = make(digits)
    first, second = stream.order(torch.arange(2 * stream.images)).view(2, stream.images)
    other = make(digits, seed=1).order(torch.arange(stream.images))
    for one, two in ((first, second), (first, other), (second, other)):
        assert (one == two).float().mean() < 0.01
    plain = make(digits, seed=None).order(torch.arange(stream.images + 3))
    assert plain.tolist() == [*range(stream.images), 0, 1, 2]


def test_a_batch_may_cross_seams(digits):
    stream = make(digits, split="test")
    across = torch.arange(stream.images - 5, 3 * stream.images + 5)  # parts of four epochs
    alone = torch.cat([stream.order(position[None]) for position in across])
    assert torch.equal(make(digits, split="test").order(across), alone)


def test_a_batch_holds_the_images_of_the_source(digits):
    stream = make(digits)
    train = Digits().load(None)["train"]
    position_B = torch.arange(1400, 1464)
    batch = stream.read(position_B)
    index_B = stream.order(position_B)
    assert batch.x_BLD.dtype == torch.float32
    assert batch.x_BLD.shape == (64, stream.patches, 48) == (64, 64, 48)
    assert 0 <= batch.x_BLD.min() < batch.x_BLD.max() <= 1
    assert torch.equal(batch.index_B, position_B)
    assert batch.label_B.tolist() == train.labels_N[index_B].tolist()
    images_BHWC = unpatchify(batch.x_BLD, 4)
    assert torch.equal(images_BHWC[..., 0], images_BHWC[..., 1])
    assert torch.equal(images_BHWC[..., 0], images_BHWC[..., 2])
    for image_HWC, index in zip(images_BHWC, index_B, strict=True):
        resized = Image.fromarray(train.images[index]).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal((image_HWC[..., 0] * 255).round(), np.asarray(resized))


def test_stored_values_become_exact_fractions(tmp_path):
    """With no resizing, x is the stored value / 255, and 0 and 255 are exactly 0 and 1."""
    index = prepare("digits", tmp_path, image_size=8, progress=False)
    stream = Stream(index, tmp_path, "test", patch_size=8, seed=None)
    x_BLD = stream.read(torch.arange(360)).x_BLD
    grey = torch.from_numpy(Digits().load(None)["test"].images.astype(np.float32)) / 255
    assert torch.equal(x_BLD.view(360, 8, 8, 3), grey[..., None].expand(360, 8, 8, 3))
    assert (x_BLD.min(), x_BLD.max()) == (0, 1)


def test_digits_are_all_of_scikit_learn():
    both = [samples.images for samples in Digits().load(None).values()]
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    found = sorted(image.tobytes() for images in both for image in images)
    assert found == sorted(image.tobytes() for image in expected)


def test_reading_from_memory_and_from_the_shards_agree(digits):
    memory, shards = make(digits), make(digits, memory_bytes=0)
    assert shards._content_NLD is None
    for start in (0, 700, 1400):
        position_B = torch.arange(start, start + 130)
        assert_same(memory.read(position_B), shards.read(position_B))


def test_colour_keeps_its_channels(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    images_NHWC = generator.integers(0, 256, (10, 8, 8, 3), np.uint8)

    class Colours(Digits):
        name, channels = "colours", 3

        def load(self, folder, progress=False):
            return {"train": Samples.from_arrays(images_NHWC, np.arange(10), 10)}

    monkeypatch.setitem(SOURCES, "colours", Colours())
    index = prepare("colours", tmp_path, image_size=8, record_images=4, progress=False)
    for memory_bytes in (0, 2**31):
        stream = Stream(index, tmp_path, "train", patch_size=4, seed=None, memory_bytes=memory_bytes)
        found = unpatchify(stream.read(torch.arange(10)).x_BLD, 4)
        assert torch.equal(found, torch.from_numpy(images_NHWC).float() / 255)


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_global_sequence_is_the_same_for_any_ranks_and_workers(digits, ranks, workers, memory_bytes):
    batch, steps, start = 64, 6, 1300  # over the seam at 1,437
    expected = make(digits).read(torch.arange(start, start + batch * steps))
    share = batch // ranks
    parts = []
    for rank in range(ranks):
        stream = make(digits, memory_bytes=memory_bytes)
        firsts = (start + step * batch + rank * share for step in range(steps))
        positions = (torch.arange(first, first + share) for first in firsts)
        parts.append(list(prefetch(stream.read, positions, workers)))
    in_order = [parts[rank][step] for step in range(steps) for rank in range(ranks)]
    for name in ("x_BLD", "index_B", "label_B"):
        assert torch.equal(torch.cat([getattr(part, name) for part in in_order]), getattr(expected, name))


def test_what_is_read_at_once_splits_into_the_same_batches(digits):
    """From memory several batches are one read, as many as 16 MiB hold; a split may end in a smaller one."""
    memory, shards = make(digits), make(digits, memory_bytes=0)
    at_once = memory.reads_at_once(100)
    assert (at_once, shards.reads_at_once(100), memory.reads_at_once(10**6)) == (2**24 // (100 * 32 * 32 * 3 * 4), 1, 1)
    position_B = torch.arange(1300, 1300 + 3 * 100 + 7)
    parts = memory.read(position_B).split(100)
    assert [len(part.index_B) for part in parts] == [100, 100, 100, 7]
    for part, of_part_B in zip(parts, position_B.split(100), strict=True):
        assert_same(part, memory.read(of_part_B))
        assert part.observed_BL is None


def test_a_run_resumes_in_the_middle(digits):
    def run(start, stop):
        stream = make(digits)
        positions = (torch.arange(first, first + 50) for first in range(start, stop, 50))
        return list(prefetch(stream.read, positions, 2))

    whole = run(0, 2000)
    for one, two in zip(whole[17:], run(850, 2000), strict=True):
        assert_same(one, two)


def readers() -> int:
    return sum(thread.name.startswith("read-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 3])
def test_prefetch_of_an_endless_sequence_ends_its_threads_when_closed(digits, workers):
    stream = make(digits)
    before = readers()
    batches = prefetch(stream.read, (torch.arange(8) + 8 * step for step in count()), workers)
    for step in range(5):
        assert next(batches).index_B[0] == 8 * step
    assert readers() == before + workers
    batches.close()
    assert readers() == before


@pytest.mark.parametrize("workers", [0, 3])
def test_prefetch_raises_an_error_where_its_batch_was_due(workers):
    def read(position_B):
        if position_B == 4:
            raise UserError("the disk is gone")
        return position_B

    before = readers()
    batches = prefetch(read, torch.arange(10), workers)
    assert [int(next(batches)) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="the disk is gone"):
        next(batches)
    assert readers() == before


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("images", lambda header: header.replace(b"|u1", b"|i1")),
        ("images", lambda header: header.replace(b"(100, 32, 32, 1)", b"(100, 32, 32, 9)")),
        ("images", lambda header: header.replace(b"'fortran_order': False", b"'fortran_order': True ")),
        ("images", lambda header: b"\0" * len(header)),
        ("labels", lambda header: header.replace(b"<i8", b"|O8")),
        ("labels", lambda header: header.replace(b"(100,)", b"(999,)")),
        ("crc32", lambda header: header.replace(b"<u4", b"<f4")),
        ("crc32", lambda header: header.replace(b"(100,)", b"(099,)")),
        ("labels", lambda header: header[:10] + b"(" * (len(header) - 10)),
    ],
)
def test_a_record_that_does_not_fit_the_index_is_named(digits, tmp_path, member, change, memory_bytes):
    root = shutil.copytree(digits[1], tmp_path / "copy")
    index = load_index(root)
    shard = index.splits["train"][1]
    record = shard.records[2]
    with (root / shard.name).open("r+b") as file:
        file.seek(getattr(record, member).offset)
        header = file.read(128)
        assert change(header) != header
        file.seek(getattr(record, member).offset)
        file.write(change(header))
    with pytest.raises(UserError) as caught:
        Stream(index, root, "train", patch_size=4, seed=0, memory_bytes=memory_bytes)
    message = str(caught.value)
    assert str(root / shard.name) in message
    assert record.key in message
    assert "--overwrite" in message
    assert "\n" not in message


def test_a_shard_cut_after_the_index_was_loaded_is_named(digits, tmp_path):
    root = shutil.copytree(digits[1], tmp_path / "copy")
    index = load_index(root)
    with (root / "train-000002.tar").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"train-000002\.tar: has 1000 bytes"):
        Stream(index, root, "train", patch_size=4, seed=0)


# Damaged images.


@pytest.fixture
def spoiled(digits, tmp_path):
    """A copy of the digits, and a function that alters one byte of an image, its label or its checksum in there."""
    root = Path(shutil.copytree(digits[1], tmp_path / "copy"))

    def spoil(index, part="images", split="train"):
        size = {"images": 1024, "labels": 8, "crc32": 4}[part]
        shard, place = digits[0].splits[split][index // 400], index % 400
        member = getattr(shard.records[place // 100], part)
        with (root / shard.name).open("r+b") as file:
            file.seek(member.offset + 128 + place % 100 * size + size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x10]))

    return (digits[0], root), spoil


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
@pytest.mark.parametrize("part", ["images", "labels", "crc32"])
def test_a_damaged_image_is_replaced_by_the_next_sound_one(digits, spoiled, memory_bytes, part):
    copy, spoil = spoiled
    for index in (457, 700, 701, 1436):  # one, two in a row, the last of the split
        spoil(index, part)
    stand_in = {457: 458, 700: 702, 701: 702, 1436: 0}
    stream = make(copy, memory_bytes=memory_bytes)
    position_B = torch.arange(stream.images)
    wanted = [stand_in.get(index, index) for index in stream.order(position_B).tolist()]
    found, sound = stream.read(position_B), make(digits, seed=None).read(torch.tensor(wanted))
    assert torch.equal(found.x_BLD, sound.x_BLD)
    assert torch.equal(found.label_B, sound.label_B)
    assert torch.equal(found.index_B, position_B)
    assert stream.damaged.keys() == stand_in.keys()


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_each_damaged_image_is_named_once(spoiled, memory_bytes, caplog):
    copy, spoil = spoiled
    spoil(457)
    spoil(458, "labels")
    stream = make(copy, seed=None, memory_bytes=memory_bytes)
    for _ in range(2):
        list(prefetch(stream.read, torch.arange(450, 470).split(5), 3))
    place = "train-000001.tar, record train-000004, place"
    reason = "its CRC-32 is not the one that was written"
    lines = {
        457: f"train image 457 ({place} 57): {reason}",
        458: f"train image 458 ({place} 58): {reason}",
    }
    assert stream.damaged == lines
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"{line}; image 459 stands in" for line in lines.values()
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    message = str(stream.damaged_error(1))
    assert (
        f"damaged images in split train of {copy[1]}: 2, more than data.max_damaged=1 (first: train image 457"
        in message
    )
    assert "--overwrite" in message
    assert "\n" not in message


def test_threads_that_meet_at_a_damaged_image_name_it_once(spoiled, monkeypatch, caplog):
    copy, spoil = spoiled
    spoil(457)
    stream = make(copy, seed=None, memory_bytes=0)
    plain, both, calls = os.preadv, threading.Barrier(2), count()

    def together(*arguments):
        if next(calls) < 2:
            both.wait()  # neither has found it damaged yet
        return plain(*arguments)

    monkeypatch.setattr(os, "preadv", together)
    list(prefetch(stream.read, [torch.tensor([457])] * 2, 2))
    assert len(caplog.records) == len(stream.damaged) == 1


def test_only_what_is_read_is_found_damaged(spoiled):
    copy, spoil = spoiled
    spoil(457)
    stream = make(copy, seed=None, memory_bytes=0)
    stream.read(torch.arange(457))
    assert stream.damaged == {}
    stream.read(torch.arange(457, 458))
    assert list(stream.damaged) == [457]


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_a_split_without_a_sound_image_is_refused(spoiled, memory_bytes):
    copy, spoil = spoiled
    for index in range(360):
        spoil(index, "crc32", "test")
    with pytest.raises(UserError, match="no sound image in split test.*--overwrite"):
        make(copy, "test", memory_bytes=memory_bytes).read(torch.arange(1))
    make(copy, "train", memory_bytes=memory_bytes)


def test_a_shard_that_is_cut_while_it_is_read_costs_its_images_not_the_run(digits, spoiled):
    copy, _ = spoiled
    stream, whole = make(copy, seed=None, memory_bytes=0), make(digits, seed=None)
    assert_same(stream.read(torch.arange(8)), whole.read(torch.arange(8)))
    record = digits[0].splits["train"][1].records[2]
    os.truncate(copy[1] / "train-000001.tar", record.images.offset + 128 + 10 * 1024 + 5)
    found = stream.read(torch.arange(600, 620))
    expected = whole.read(torch.tensor([*range(600, 610), *[800] * 10]))  # 800 is the first of the next shard
    assert torch.equal(found.x_BLD, expected.x_BLD)
    assert torch.equal(found.label_B, expected.label_B)
    assert "cut short, 5 of 1024 bytes" in stream.damaged[610]
    assert "cut short, 0 of 1024 bytes" in stream.damaged[611]
    assert set(stream.damaged) == set(range(610, 800))


def test_an_error_of_the_disk_is_damage(digits, monkeypatch):
    stream = make(digits, seed=None, memory_bytes=0)
    plain = os.preadv
    calls = count()

    def faulty(*arguments):
        if next(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(*arguments)

    monkeypatch.setattr(os, "preadv", faulty)
    found = stream.read(torch.arange(5))
    expected = make(digits, seed=None, memory_bytes=2**31).read(torch.tensor([0, 1, 3, 3, 4]))
    assert torch.equal(found.x_BLD, expected.x_BLD)
    assert "cannot be read (Input/output error)" in stream.damaged[2]
    again = stream.read(torch.arange(5))  # the disk has recovered, but an image is the same one in each epoch
    assert torch.equal(again.x_BLD, found.x_BLD)


def test_the_shards_are_closed_with_the_stream(digits):
    def tars():
        found = set()
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the one that lists the folder
                found.add(os.readlink(f"/proc/self/fd/{fd}"))
        return {name for name in found if name.startswith(str(digits[1]))}

    stream = make(digits, memory_bytes=0)
    assert len(tars()) == 4
    del stream
    assert tars() == set()
    in_memory = make(digits)
    assert tars() == set()
    assert_same(in_memory.read(torch.arange(3)), make(digits).read(torch.arange(3)))


def test_unknown_splits_and_patch_sizes_are_refused(digits):
    index, root = digits
    with pytest.raises(UserError, match="no split 'val', only train, test"):
        Stream(index, root, "val", patch_size=4, seed=0)
    with pytest.raises(UserError, match="do not divide into patches of 5"):
        Stream(index, root, "train", patch_size=5, seed=0)


def test_config_defaults_and_properties():
    config = DataConfig(source="mnist")
    assert (config.shards, config.patches, config.token_dim) == ("datasets/mnist", 64, 48)
    assert DataConfig(source="digits", shards="elsewhere", code_dim=512).token_dim == 512
    assert DataConfig(source="digits", image_size=128, patch_size=16).patches == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mnist", "image_size": 30}, "image_size 30 is no multiple of patch_size 4"),
        ({"source": "mnits"}, "no data set is called 'mnits'"),
        ({"source": "mnist", "sice": 3}, "Extra inputs"),
        ({"source": "mnist", "max_damaged": -1}, "greater than or equal to 0"),
        ({"source": "mnist", "workers": -1}, "greater than or equal to 0"),
    ],
)
def test_config_refuses_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
