"""The index of tar files: what is found in them, made once, by one process or many."""

import io
import json
import logging
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from data.errors import UserError
from data.order.weave import Weave
from data.storage.storage import LocalFolder
from data.tars.headers import DamagedTarError
from data.tars.indexing import index_tars
from data.tars.manifest import TarIndex, index_command, read_manifest
from data.tars.sidecar import SidecarReader, encode_sidecar, read_tar
from launch.prepare import main as prepare_main


def write(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def read(path: Path, label_field=None, keeps_back=True):
    return read_tar(LocalFolder(path.parent), path.name, label_field, keeps_back)


def index(shards, out, **options):
    return index_tars(str(shards), str(out), progress=False, **options)


def checksum(manifest, image_size=8):
    return TarIndex(manifest, "", image_size).checksum


def test_images_are_found_with_their_keys_and_labels(tmp_path):
    path = write(
        tmp_path / "a.tar",
        {"d/1.jpg": b"one", "d/1.cls": b"7\n", "d/1.txt": b"text", "2.PNG": b"two", "3.x.webp": b"", "2.1.jpeg": b"no"},
    )
    found = read(path)
    content = path.read_bytes()
    rows = found.rows
    images = {
        key: (content[offset : offset + size], label)
        for key, offset, size, label in zip(found.key_N, rows.offset_N, rows.bytes_N, rows.label_N, strict=True)
    }
    assert images == {b"d/1": (b"one", 7), b"2": (b"two", 0)}
    assert (found.bytes, found.left_out) == (len(content), 2)
    assert found.first_left_out == "3 has no image"  # x.webp is its suffix, as webdataset has it


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"1.txt": b"a"}, "1 has no image"),
        ({"1.jpg": b"a", "1.png": b"b"}, "1 has 2 images"),
        ({"1.jpg": b"a", "2.jpg": b"b", "1.png": b"c"}, "1 stands twice in the file"),
        ({"1.jpg": b""}, "1 has an image of 0 bytes"),
        ({"1.jpg": b"a", "1.cls": b"cat"}, r"1 has no whole number as label \(cls\)"),
        ({"1.jpg": b"a", "1.cls": b"-1"}, r"1 has no whole number as label \(cls\)"),
    ],
)
def test_samples_that_cannot_be_used_are_named(tmp_path, members, reason):
    found = read(write(tmp_path / "a.tar", {"0.jpg": b"sound", **members}))
    assert found.left_out == 1
    assert b"0" in found.key_N
    assert re.fullmatch(reason, found.first_left_out)


def test_a_file_without_images_is_damaged(tmp_path):
    with pytest.raises(DamagedTarError, match=r"no member of it is an image \(jpeg, .*\), as 1 has no image"):
        read(write(tmp_path / "a.tar", {"1.txt": b"a", "2.txt": b"b"}))


@pytest.mark.parametrize(
    ("text", "label"),
    [(b'{"n": 5}', 5), (b'{"n": "5"}', None), (b"{", None), (b"[" * 10**5, None), (b'{"m": 5}', None)],
)
def test_labels_come_from_a_field_where_one_is_named(tmp_path, text, label):
    found = read(write(tmp_path / "a.tar", {"0.jpg": b"a", "0.json": b'{"n": 1}', "1.jpg": b"a", "1.json": text}), "n")
    assert found.rows.label_N.tolist() == [1] + [label] * (label is not None)
    if label is None:
        assert found.first_left_out == "1 has no whole number as label (field n in its JSON)"


def test_one_of_fifty_is_kept_back_by_its_key(tars, tmp_path):
    manifest = index(tars / "*.tar", tmp_path)
    found = [read(tars / f"{number:05d}.tar") for number in range(4)]
    assert [tar.train for tar in manifest.tars] == [each.train for each in found]
    kept = [key for each in found for key in each.key_N[each.train :]]
    assert 2 <= len(kept) <= 20
    assert sum(tar.test for tar in manifest.tars) == len(kept)
    alone = index(tars / "0000{0,2}.tar", tmp_path)  # what else is named changes nothing
    assert [tar.test for tar in alone.tars] == [manifest.tars[0].test, manifest.tars[2].test]


def test_files_to_test_with_can_be_named(tars, tmp_path):
    manifest = index(tars / "0000{0..2}.tar", tmp_path, test_shards=str(tars / "00003.tar"))
    assert [(tar.train, tar.test) for tar in manifest.tars] == [(100, 0)] * 3 + [(0, 100)]
    assert manifest.classes == 10
    with pytest.raises(UserError, match=r"00001\.tar is named both for training and for testing"):
        index(tars / "0000{0..2}.tar", tmp_path, test_shards=str(tars / "00001.tar"))


def test_the_index_is_the_same_however_it_was_made(tars, tmp_path, monkeypatch):
    once = index(tars / "*.tar", tmp_path / "once", weave=Weave(4, 5, 6))
    assert index(tars / "*.tar", tmp_path / "spread", weave=Weave(4, 5, 6), workers=3) == once
    for share in (2, 0, 1):
        assert index(tars / "*.tar", tmp_path / "shares", share=(share, 3)) is None
        assert not (tmp_path / "shares" / "manifest.json").exists()
    looked = []
    monkeypatch.setattr("data.tars.indexing.read_tar", lambda *_: looked.append(_))
    assert index(tars / "*.tar", tmp_path / "shares", weave=Weave(4, 5, 6)) == once
    assert looked == []  # what was found is kept
    assert read_manifest(str(tmp_path / "shares"), "") == once
    monkeypatch.undo()
    moved = shutil.copytree(tars, tmp_path / "moved")
    os.utime(moved / "00000.tar", (0, 0))
    elsewhere = index(moved / "*.tar", tmp_path / "elsewhere")
    assert checksum(elsewhere) == checksum(once)  # the images are the same
    assert checksum(once, image_size=16) != checksum(once)
    assert checksum(index(tars / "0000{0..2}.tar", tmp_path / "fewer")) != checksum(once)


def test_a_folder_of_others_is_left_alone(tars, tmp_path):
    manifest = index(tars / "*.tar", tmp_path)
    theirs = tmp_path / manifest.tars[1].sidecar
    for name in (theirs.name, "manifest.json"):
        ours = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"mine")
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f"{name} is not an index of ours"):
                index(tars / "*.tar", tmp_path, overwrite=overwrite)
        assert (tmp_path / name).read_bytes() == b"mine"
        (tmp_path / name).write_bytes(ours)
    theirs.write_bytes(theirs.read_bytes()[:-1])  # ours, and cut
    assert index(tars / "*.tar", tmp_path, overwrite=True) == manifest


def test_damaged_files_are_left_out_within_a_limit(tars, tmp_path, caplog):
    copy = shutil.copytree(tars, tmp_path / "copy")
    (copy / "00001.tar").write_bytes(b"<html>not found</html>")
    (copy / "00002.tar").write_bytes((copy / "00002.tar").read_bytes()[:5000])
    with pytest.raises(
        UserError, match=r"cannot be used: 2, more than --max-damaged 1 \(first .*00001\.tar: a web page"
    ):
        index(copy / "*.tar", tmp_path / "index", max_damaged=1)
    assert len(list((tmp_path / "index").glob("*.safetensors"))) == 2
    with caplog.at_level(logging.WARNING):
        manifest = index(copy / "*.tar", tmp_path / "index", max_damaged=2)
    assert [tar.name for tar in manifest.tars] == ["00000.tar", "00003.tar"]
    assert "files left out: 2, first" in caplog.text


def test_what_is_missing_is_one_line(tars, tmp_path):
    with pytest.raises(UserError, match=r"00004\.tar cannot be read \(No such file or directory\)"):
        index(tars / "0000{0..4}.tar", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be written"):
        index(tars / "00000.tar", tmp_path / "file")
    command = index_command("a.tar", None, None, str(tmp_path))
    with pytest.raises(UserError, match=r"manifest\.json does not exist: make it with `python launch/prep"):
        read_manifest(str(tmp_path), command)
    for text, reason in (("{", "damaged"), ('{"version": 2}', "another version"), ('{"version": 1}', "damaged")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=reason):
            read_manifest(str(tmp_path), command)


def test_too_few_images_to_train_and_test_with(tmp_path):
    write(tmp_path / "a.tar", {"1.jpg": b"a"})
    with pytest.raises(UserError, match="too few images to train on and to test with"):
        index(tmp_path / "a.tar", tmp_path / "index")


def test_rows_are_read_alone_and_never_trusted(tars, tmp_path):
    found = read(tars / "00000.tar")
    whole = encode_sidecar(found)
    storage = LocalFolder(tmp_path)
    storage.write("a", whole)
    rows = SidecarReader(storage, "a", 100, found.bytes).rows(10, 20)
    assert rows.offset_N.tolist() == found.rows.offset_N[10:20].tolist()
    assert rows.label_N.tolist() == found.rows.label_N[10:20].tolist()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    first = 8 + int.from_bytes(whole[:8], "little") + header["offset"]["data_offsets"][0]
    for content in (whole[:50], whole[: first + 100], b"", b"\xff" * 200, whole[:8] + b"x" + whole[9:]):
        storage.write("a", content)
        with pytest.raises(UserError, match="a is damaged"):
            SidecarReader(storage, "a", 100, found.bytes).rows(10, 20)
    storage.write("a", whole[: first + 80] + b"\x7f" * 8 + whole[first + 88 :])
    with pytest.raises(UserError, match="rows that lie outside the file"):
        SidecarReader(storage, "a", 100, found.bytes).rows(10, 20)
    storage.write("a", whole)
    with pytest.raises(UserError, match="another number of images"):
        SidecarReader(storage, "a", 99, found.bytes)


def test_the_command_makes_an_index(tars, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--label", "digit", "--lanes", "8", "--workers", "1")
    assert prepare_main(["index", f"{tars}/*.tar", "--share", "1/2", "--out", "index", *options]) == 0
    assert prepare_main(["index", f"{tars}/*.tar", "--out", "index", *options]) == 0
    manifest = read_manifest("index", "")
    assert (manifest.label_field, manifest.weave) == ("digit", Weave(lanes=8))
    for share in ("2/2", "a", "1"):
        with pytest.raises(SystemExit):
            prepare_main(["index", f"{tars}/*.tar", "--share", share])
    assert "is no share, as 0/4 to 3/4 are" in capsys.readouterr().err
