"""Damaged images in the user's folder: replaced, named, counted, the same however often `prepare` is interrupted."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import UserError
from data.patches import unpatchify
from data.prepare import prepare
from data.prepare.verify import verify
from data.read.index import load_index
from data.read.stream import Stream
from data.sources.images import DamagedImageError, decode
from tests.programs import ROOT

TRAIN, TEST = 60, 5
LAYOUT = {"image_size": 8, "record_images": 3, "shard_records": 2, "progress": False}  # 6 images a shard
# In the middle; two in a row over the seam of two records; the last of a shard; all but one of a shard.
DAMAGED = {1: 2, 8: 10, 9: 10, 17: 12, 18: 21, 19: 21, 20: 21, 22: 21, 23: 21}


@pytest.fixture
def folder(tmp_path):
    """Image n is (n, n, n), of class n % 4 in training; some files are cut short, absent or no image."""
    root = tmp_path / "folder"
    for split, count in (("train", TRAIN), ("test", TEST)):
        for n in range(count):
            path = root / split / f"{n:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (n, n, n)).save(path)
    for number, n in enumerate(DAMAGED):
        path = root / "train" / f"{n:03d}.png"
        if number % 3 == 0:
            os.truncate(path, 50)
        elif number % 3 == 1:
            path.write_text("no image")
        else:
            path.unlink()
            path.symlink_to("nowhere")
    return root


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != ".lock"}


def test_the_next_sound_image_of_the_shard_stands_in(folder, tmp_path):
    index = prepare("folder", tmp_path / "out", source_dir=folder, **LAYOUT)
    assert {image.index: image.stand_in for image in index.replaced} == DAMAGED
    stream = Stream(index, tmp_path / "out", "train", patch_size=8, seed=None)
    images_NHWC = (unpatchify(stream.read(torch.arange(TRAIN)).x_BLD, 8) * 255).round().int()
    for n, image in enumerate(images_NHWC):
        assert (image == DAMAGED.get(n, n)).all(), n
    assert stream.damaged == {}
    assert verify(tmp_path / "out") == []
    assert [image.name for image in index.replaced] == [f"train/{n:03d}.png" for n in DAMAGED]
    assert {image.reason for image in index.replaced[1::3]} == {
        "no image in JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM, AVIF format"
    }
    assert {image.reason for image in index.replaced[2::3]} == {"No such file or directory"}


def test_a_damaged_file_is_decoded_once(folder, tmp_path, monkeypatch):
    """However many images a stand-in has to be looked for: a shard of nothing but damage must not take for ever."""
    failed = Counter()

    def counted(content, crop):
        try:
            return decode(content, crop)
        except DamagedImageError:
            failed[content] += 1
            raise

    monkeypatch.setattr("data.sources.samples.decode", counted)
    for n in range(6, 11):
        (folder / "train" / f"{n:03d}.png").unlink(missing_ok=True)
        (folder / "train" / f"{n:03d}.png").write_text(f"no image {n}")
    prepare("folder", tmp_path / "out", source_dir=folder, **LAYOUT)
    assert [failed[f"no image {n}".encode()] for n in range(6, 11)] == [1] * 5


def test_the_label_is_that_of_the_stand_in(tmp_path):
    for n in range(4):
        path = tmp_path / "folder" / "train" / f"class{n}" / "image.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(path)
    (tmp_path / "folder/test/class0").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "folder/test/class0/image.png")
    (tmp_path / "folder/train/class3/image.png").write_text("no image")
    index = prepare("folder", tmp_path / "out", source_dir=tmp_path / "folder", **LAYOUT)
    stream = Stream(index, tmp_path / "out", "train", patch_size=8, seed=None)
    assert stream.read(torch.arange(4)).label_B.tolist() == [0, 1, 2, 0]


def test_the_log_names_ten_and_counts_the_rest(folder, tmp_path, caplog):
    for n in (30, 40, 50):
        (folder / "train" / f"{n:03d}.png").write_text("no image")
    prepare("folder", tmp_path / "out", source_dir=folder, **LAYOUT)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines.pop(0).startswith("one class: ")
    lines = [line for line in lines if not line.startswith("the brightest value")]
    assert lines[0].startswith("train/001.png is damaged: ")
    assert lines[0].endswith("; train image 2 stands in")
    assert len(lines) == 11
    assert lines[10] == "and 2 more; index.json names them all"


@pytest.mark.parametrize("workers", [1, 2])
def test_more_than_accepted_stop_the_preparation(folder, tmp_path, workers):
    out = tmp_path / "out"
    request = {"source_dir": folder, "workers": workers, **LAYOUT}
    with pytest.raises(
        UserError, match=r"damaged images: 9 or more, which is more than --max-damaged 8 \(first train/0"
    ) as caught:
        prepare("folder", out, max_damaged=8, **request)
    assert str(caught.value).isprintable()
    assert not (out / "index.json").exists()
    assert not list(out.glob("*.tmp"))
    prepare("folder", out, max_damaged=9, **request)
    prepare("folder", tmp_path / "fresh", max_damaged=9, **request | {"workers": 1})
    assert contents(out) == contents(tmp_path / "fresh")
    with pytest.raises(UserError, match="damaged images: 9 or more"):  # also when all is there already
        prepare("folder", out, max_damaged=8, **request)


def test_damage_is_counted_across_interruptions(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="damaged images: 1 or more"):
        prepare("folder", out, source_dir=folder, max_damaged=0, **LAYOUT)
    there = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(there) == 1
    with pytest.raises(UserError, match="damaged images: 3 or more"):
        prepare("folder", out, source_dir=folder, max_damaged=2, **LAYOUT)
    assert {path: path.stat().st_mtime_ns for path in there} == there


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_without_a_sound_image_is_refused(folder, tmp_path, workers):
    for n in range(6, 12):
        (folder / "train" / f"{n:03d}.png").write_text("no image")
    with pytest.raises(UserError, match=r"none of the 6 images for train-000001.tar can be used \(first train/006"):
        prepare("folder", tmp_path / "out", source_dir=folder, workers=workers, **LAYOUT)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_changed_image_is_other_data(folder, tmp_path):
    prepare("folder", tmp_path / "out", source_dir=folder, **LAYOUT)
    Image.new("RGB", (20, 20), "red").save(folder / "train" / "001.png")  # it was damaged
    with pytest.raises(UserError, match="holds other data"):
        prepare("folder", tmp_path / "out", source_dir=folder, **LAYOUT)
    index = prepare("folder", tmp_path / "out", source_dir=folder, overwrite=True, **LAYOUT)
    assert 1 not in {image.index for image in index.replaced}


SCRIPT = """
import os, signal, sys
from data.read import records
from data.prepare import prepare

def encode_or_die(array, plain=records.encode, left=[{left}]):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(array)

if __name__ == "__main__":
    records.encode = encode_or_die
    prepare("folder", {out!r}, source_dir={folder!r}, workers={workers}, **{layout!r})
"""


def start(tmp_path, out, folder, workers, left=-1):
    """A process that prepares the folder, and is killed when it is about to write array number `left`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(layout=LAYOUT, out=str(out), folder=str(folder), workers=workers, left=left))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, script], env=environment)


def test_a_killed_run_with_damaged_images_is_completed_to_the_same_bytes(folder, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arrays_of_a_shard = 3 * 2
    process = start(tmp_path, killed, folder, workers=1, left=3 * arrays_of_a_shard + 5)
    assert process.wait() == -signal.SIGKILL
    there = {path: path.stat().st_mtime_ns for path in killed.glob("*.tar.json")}
    assert not (killed / "index.json").exists()
    assert len(there) == 3
    assert len(list(killed.glob("*.tmp"))) == 1  # the shard that it was at

    index = prepare("folder", killed, source_dir=folder, workers=2, **LAYOUT)
    assert {path: path.stat().st_mtime_ns for path in there} == there  # kept, not written again
    assert prepare("folder", whole, source_dir=folder, workers=1, **LAYOUT) == index
    assert {image.index: image.stand_in for image in index.replaced} == DAMAGED
    assert contents(killed) == contents(whole)


def test_two_at_once_write_one_folder(folder, tmp_path):
    both = [start(tmp_path, tmp_path / "out", folder, workers=1) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    prepare("folder", tmp_path / "alone", source_dir=folder, **LAYOUT)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert load_index(tmp_path / "out").images == {"train": TRAIN, "test": TEST}


def test_a_file_system_without_locks_is_warned_of(folder, tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    index = prepare("folder", tmp_path / "out", source_dir=folder, **LAYOUT)
    assert f"{tmp_path / 'out'} lies where files cannot be locked" in caplog.text
    assert load_index(tmp_path / "out") == index


def test_pixels_are_resized_with_their_neighbours(tmp_path):
    """A pattern of single black and white columns becomes grey: every pixel counts, also at a quarter of the size."""
    pattern = np.zeros((32, 32, 3), np.uint8)
    pattern[:, ::2] = 255
    for split in ("train", "test"):
        (tmp_path / "folder" / split).mkdir(parents=True)
        Image.fromarray(pattern).save(tmp_path / "folder" / split / "1.png")
    index = prepare("folder", tmp_path / "out", source_dir=tmp_path / "folder", **LAYOUT)
    x_BLD = Stream(index, tmp_path / "out", "train", patch_size=8, seed=None).read(torch.arange(1)).x_BLD
    assert (x_BLD - 0.5).abs().max() < 0.1
