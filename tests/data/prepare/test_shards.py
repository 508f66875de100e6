import fcntl
import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data.errors import UserError
from data.order.parts import Whole
from data.prepare import prepare
from data.prepare.verify import verify
from data.read.config import DataConfig
from data.read.index import load_index
from data.read.split_images import SplitImages
from data.sources import SOURCES
from data.storage.cache import BlockCache
from tests.programs import ROOT


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != ".lock"}


def copy(digits, tmp_path):
    return Path(shutil.copytree(digits[1], tmp_path / "copy"))


def again(root, **options):
    return prepare("digits", root, record_images=100, shard_records=4, progress=False, **options)


# Writing.


def test_the_index_lists_what_was_written(digits):
    index, root = digits
    assert load_index(root) == index
    assert (index.source, index.classes, index.image_shape) == ("digits", 10, (32, 32, 1))
    assert index.images == SOURCES["digits"].splits
    assert [shard.images for shard in index.splits["train"]] == [400, 400, 400, 237]
    assert [record.count for record in index.splits["train"][3].records] == [100, 100, 37]
    for split, shards in index.splits.items():
        keys = [record.key for shard in shards for record in shard.records]
        assert keys == [f"{split}-{number:06d}" for number in range(len(keys))]
    names = {shard.name for shard in index.shards}
    assert contents(root).keys() == names | {f"{name}.json" for name in names} | {"index.json"}


def test_parallel_writing_gives_the_same_bytes(digits, tmp_path):
    index = again(tmp_path, workers=2)
    assert index == digits[0]
    assert contents(tmp_path) == contents(digits[1])


def test_the_checksum_is_of_the_images_not_of_the_layout(digits, tmp_path):
    other_layout = prepare("digits", tmp_path / "a", progress=False)
    other_size = prepare("digits", tmp_path / "b", image_size=16, progress=False)
    assert other_layout.checksum == digits[0].checksum != other_size.checksum


def test_plain_tar_lists_every_shard(digits):
    index, root = digits
    for shard in index.shards:
        listed = subprocess.run(["tar", "tf", root / shard.name], check=True, capture_output=True, text=True)
        expected = [f"{r.key}.{part}.npy" for r in shard.records for part in ("crc32", "images", "labels")]
        assert listed.stdout.split() == expected


def test_owner_mode_and_time_of_members_are_fixed(digits):
    index, root = digits
    with tarfile.open(root / index.shards[0].name) as tar:
        found = {(m.uname, m.gname, m.uid, m.gid, m.mode, m.mtime) for m in tar}
    assert found == {("biglearn", "biglearn", 0, 0, 0o644, 0)}


def test_webdataset_reads_every_shard(digits):
    index, root = digits
    for split, samples in SOURCES["digits"].load(None).items():
        labels = []
        for shard in index.splits[split]:
            records = list(webdataset.WebDataset(str(root / shard.name), shardshuffle=False).decode())
            assert [record["__key__"] for record in records] == [record.key for record in shard.records]
            for record, listed in zip(records, shard.records, strict=True):
                assert record["images.npy"].shape == (listed.count, 32, 32, 1)
                assert record["images.npy"].dtype == np.uint8
                assert record["labels.npy"].dtype == np.int64
                labels += record["labels.npy"].tolist()
        assert labels == samples.labels_N.tolist()


def test_numpy_reads_a_record_at_its_offset(digits):
    index, root = digits
    shard = index.splits["train"][2]
    record = shard.records[1]
    with (root / shard.name).open("rb") as file:
        file.seek(record.labels.offset)
        label_B = np.load(file, allow_pickle=False)
        assert file.tell() == record.labels.offset + record.labels.bytes
    train = SOURCES["digits"].load(None)["train"]
    assert label_B.tolist() == train.labels_N[900:1000].tolist()


# Resuming, refusing, overwriting.

SCRIPT = """
from data.prepare import prepare
if __name__ == "__main__":
    prepare("digits", {out!r}, image_size=64, record_images=8, shard_records=1, workers=2, progress=False)
"""


def test_a_killed_run_is_completed_to_the_same_bytes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(out=str(tmp_path / "killed")))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    killed = tmp_path / "killed"
    while len(list(killed.glob("*.tar.json"))) < 5:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "index.json").exists()
    with pytest.raises(UserError, match="does not exist"):
        load_index(killed)
    assert _all_ended(process.pid)

    shards = (path.with_suffix("") for path in killed.glob("*.tar.json"))  # a sidecar comes before its shard
    there = {path: path.stat().st_mtime_ns for path in shards if path.exists()}
    request = {"image_size": 64, "record_images": 8, "shard_records": 1, "progress": False}
    index = prepare("digits", killed, **request)
    assert 4 <= len(there) < len(index.shards)
    assert {path: path.stat().st_mtime_ns for path in there} == there  # kept, not written again

    whole = tmp_path / "whole"
    assert prepare("digits", whole, **request) == index
    assert contents(killed) == contents(whole)
    assert verify(killed) == []


SCRIPT_OF_A_BEGINNER = """
from data.prepare import prepare
prepare("digits", {out!r}, record_images=100, shard_records=4, workers=2, progress=False)
"""


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_a_script_without_a_guard_prepares_with_several_processes(digits, tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT_OF_A_BEGINNER.format(out=str(tmp_path / "out")))
    with script.open() as file:
        command = [sys.executable, script] if how == "file" else [sys.executable, "-"]
        done = subprocess.run(
            command, stdin=file, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path / "out") == contents(digits[1])


def test_a_writing_process_imports_no_torch():
    """Which would take each of them a second and much of its memory."""
    code = "import sys, data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def _all_ended(group: int) -> bool:
    """Whether the writing processes of a dead parent end by themselves."""
    for _ in range(30_000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_whole_folder_is_left_alone(digits, tmp_path, caplog):
    root = copy(digits, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.iterdir() if path.name != ".lock"}
    with caplog.at_level("INFO"):
        assert again(root) == digits[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "is whole, nothing to do" in caplog.text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / "train-000001.tar").unlink(),
        lambda root: (root / "train-000001.tar.json").write_text("{"),
        lambda root: os.truncate(root / "train-000001.tar", 5000),
        lambda root: (root / "index.json").unlink(),
        lambda root: shutil.copy(root / "train-000000.tar.json", root / "train-000001.tar.json"),
        lambda root: (root / "index.json").rename(root / "train-000001.tar.77.tmp"),  # of a killed run
    ],
)
def test_what_is_missing_is_written_again(digits, tmp_path, spoil):
    root = copy(digits, tmp_path)
    spoil(root)
    again(root)
    assert contents(root) == contents(digits[1])


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"image_size": 16, "record_images": 100, "shard_records": 4}, r"image_shape \(32, 32, 1\)"),
        ({"record_images": 50, "shard_records": 4}, "record_images 100"),
        ({"record_images": 100, "shard_records": 8}, "shard_records 4"),
    ],
)
def test_a_folder_with_other_data_is_refused_then_overwritten(digits, tmp_path, options, difference):
    root = copy(digits, tmp_path)
    with pytest.raises(UserError, match=difference) as caught:
        prepare("digits", root, progress=False, **options)
    assert "another --out" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert contents(root) == contents(digits[1])

    (root / "notes.txt").write_text("mine")
    prepare("digits", root, progress=False, overwrite=True, **options)
    prepare("digits", tmp_path / "fresh", progress=False, **options)
    assert (root / "notes.txt").read_text() == "mine"
    (root / "notes.txt").unlink()
    assert contents(root) == contents(tmp_path / "fresh")


def test_an_interrupted_run_with_another_request_leaves_nothing_behind(digits, tmp_path):
    root = copy(digits, tmp_path)
    (root / "index.json").unlink()
    prepare("digits", root, progress=False)  # fewer shards, other records
    prepare("digits", tmp_path / "fresh", progress=False)
    assert contents(root) == contents(tmp_path / "fresh")


def test_a_whole_folder_needs_no_sidecars(digits, tmp_path, caplog):
    root = copy(digits, tmp_path)
    for path in root.glob("*.tar.json"):
        path.unlink()
    with caplog.at_level("INFO"):
        assert again(root) == digits[0]
    assert "is whole, nothing to do" in caplog.text
    assert not [*root.glob("*.tar.json")]


def test_a_whole_folder_that_cannot_be_written_is_left_alone(digits, shared_folder, as_nobody):
    root = Path(shutil.copytree(digits[1], shared_folder / "shards"))
    (root / ".lock").unlink(missing_ok=True)
    root.chmod(0o755)
    with as_nobody():
        assert again(root) == digits[0]
        with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
            again(root, overwrite=True)
        with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
            again(shared_folder / "other")
    assert contents(root) == contents(digits[1])
    (root / ".lock").touch(mode=0o644)
    with as_nobody():
        assert again(root) == digits[0]


# What is not ours.


def theirs(folder, *names):
    """A person's files, and what is in the folder with them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{name} is mine")
    return contents(folder)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ("shard-000000.tar", "photos-000001.tar.json", "train-000000.tar"),
        ("holiday.tar",),
        ("train-000000.tar.json",),
        ("index.json",),
        ("train-000000.tar.77.tmp", "index.json"),
    ],
)
def test_a_folder_with_files_of_others_is_refused(tmp_path, names, overwrite):
    before = theirs(tmp_path / "own", *names)
    with pytest.raises(UserError, match=r"own") as caught:
        again(tmp_path / "own", overwrite=overwrite)
    assert "another --out" in str(caught.value) or "is damaged" in str(caught.value)
    assert contents(tmp_path / "own") == before


@pytest.mark.parametrize("is_finished", [True, False])
def test_files_of_others_beside_shards_of_ours_stay(digits, tmp_path, is_finished):
    root = copy(digits, tmp_path)
    names = ("shard-000000.tar.json", "photos-000001.tar.json", "notes.tar.1.tmp", "extra-000000.tar")
    before = theirs(root, *names)
    if not is_finished:
        (root / "train-000001.tar").unlink()
    again(root)
    assert contents(root) == before
    again(root, overwrite=True)
    assert contents(root) == before
    prepare("digits", root, progress=False, overwrite=True)
    assert {name: (root / name).read_text() for name in names} == {name: f"{name} is mine" for name in names}
    assert {path.name for path in root.glob("train-*.tar")} == {"train-000000.tar"}


@pytest.mark.parametrize("version", [1, 3])
def test_shards_of_another_version_are_replaced_on_request(digits, tmp_path, version):
    root = copy(digits, tmp_path)
    for path in root.glob("*.json"):
        path.write_text(path.read_text().replace('"version": 2', f'"version": {version}'))
    with pytest.raises(UserError, match="another version"):
        again(root)
    again(root, overwrite=True)
    assert contents(root) == contents(digits[1])


def test_a_shard_is_never_there_unnamed(digits, tmp_path, monkeypatch):
    root, replace = tmp_path / "killed", os.replace
    monkeypatch.setattr(os, "replace", lambda *names: pytest.exit("killed") if names[1].suffix == ".tar" else None)
    with pytest.raises(pytest.exit.Exception):
        again(root)
    monkeypatch.setattr(os, "replace", replace)
    again(root)
    assert contents(root) == contents(digits[1])


def test_overwriting_repairs_an_altered_byte(digits, tmp_path):
    root = copy(digits, tmp_path)
    alter(root / "train-000000.tar", 5000)
    again(root, overwrite=True)
    assert contents(root) == contents(digits[1])


def test_a_run_waits_for_another_one_on_its_folder(digits, tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # what the other run holds
        run = threading.Thread(target=again, args=[tmp_path])
        run.start()
        run.join(timeout=1)
        assert run.is_alive()
        assert contents(tmp_path) == {}
    run.join()
    assert contents(tmp_path) == contents(digits[1])


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        prepare("digits", tmp_path / "file", progress=False)
    with pytest.raises(UserError, match="choose 1 to 4096"):
        prepare("digits", tmp_path / "out", image_size=0, progress=False)
    with pytest.raises(UserError, match="no data set is called"):
        prepare("digitz", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# Loading a damaged index.

SHARD = ("splits", "train", 0)
RECORD = (*SHARD, "records", 0)


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        ((*RECORD, "images", "offset"), 0, "overlaps with what is before it"),
        ((*SHARD, "bytes"), 10**20, "bytes"),
        (("surprise",), 1, "surprise"),
        (("sur\nprise\x1b",), 1, r"sur\\nprise\\x1b"),
        ((*RECORD, "surprise"), 1, "surprise"),
        ((*RECORD, "count"), -1, "count"),
        ((*RECORD, "count"), "100", "count"),
        ((*RECORD, "count"), 101, "bytes for 101 images"),
        ((*RECORD, "count"), 10**15, "bytes for"),
        ((*RECORD, "key"), "a.b", "key"),
        ((*RECORD, "images", "offset"), -1, "offset"),
        ((*RECORD, "images", "offset"), 10**9, "lies outside the file"),
        ((*RECORD, "labels", "bytes"), 10**9, "lies outside the file"),
        ((*SHARD, "records"), [], "records"),
        ((*SHARD, "name"), "../train-000000.tar", "name"),
        ((*SHARD, "name"), "/train-000000.tar", "name"),
        ((*SHARD, "name"), "train-000001.tar", "named twice"),
        ((*SHARD, "sha256"), "xyz", "sha256"),
        (("image_shape",), [32, 32], "image_shape"),
        (("image_shape",), [32, 32, 2], "image_shape"),
        (("splits",), {}, "splits"),
    ],
)
def test_a_damaged_index_is_refused_in_one_line(digits, tmp_path, place, value, fault):
    root = copy(digits, tmp_path)
    edit(root, place, value)
    with pytest.raises(UserError, match=fault) as caught:
        load_index(root)
    message = str(caught.value)
    assert message.startswith(f"{root}/index.json is damaged (")
    assert f"`python launch/prepare.py mnist --out {root} --overwrite`" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 2}', '{"a\\nb": 1}', "[" * 100_000, "\xff"])
def test_an_index_that_is_no_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"index\.json is damaged") as caught:
        load_index(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"index\.json is damaged .*--overwrite"):
        prepare("digits", tmp_path, progress=False)


@pytest.mark.parametrize("version", [1, 3])
def test_an_index_of_another_version_is_told_apart_from_a_damaged_one(digits, tmp_path, version):
    root = copy(digits, tmp_path / "digits")
    edit(root, ("version",), version)
    with pytest.raises(UserError, match="was written by another version") as caught:
        load_index(root, "digits")
    assert f"`python launch/prepare.py digits --out {root} --overwrite`" in str(caught.value)
    again(root, overwrite=True)
    assert contents(root) == contents(digits[1])


def test_an_index_beyond_all_bounds_is_not_read(tmp_path):
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(UserError, match="more than 1,073,741,824 bytes"):
        load_index(tmp_path)


@pytest.mark.parametrize("folder", ["pipe:cat secret", "ftp://host/shards", "hf://b"])
def test_what_is_no_folder_is_refused_on_sight(folder):
    message = f"shards are read from a folder; {folder} is none"
    with pytest.raises(UserError, match=re.escape(message)):
        load_index(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(source="digits", shards=folder)
    assert verify(folder)[0].startswith(message)


@pytest.mark.parametrize("folder", ["pipe:cat secret", "hf://b"])
def test_shards_are_written_to_no_program(folder):
    with pytest.raises(UserError, match=re.escape(f"nothing can be written to {folder}: give a folder, or an address")):
        prepare("digits", folder, progress=False)


@pytest.mark.parametrize("folder", ["pipe:cat secret", "http://host/shards", "s3://bucket/shards", "S3://b"])
def test_original_files_are_read_from_a_folder_of_this_machine(folder):
    with pytest.raises(UserError, match=re.escape(f"this works in folders of the machine; {folder} is none")):
        prepare("digits", "out", source_dir=folder, progress=False)


def test_a_missing_folder_names_the_command(tmp_path):
    for name, source in (("nowhere", "mnist"), ("digits", "digits")):
        command = f"`python launch/prepare.py {source} --out {tmp_path / name}`"
        with pytest.raises(UserError, match="does not exist") as caught:
            load_index(tmp_path / name)
        assert command in str(caught.value)


def test_too_many_open_files_and_no_permission_are_said_as_such(digits, shared_folder, as_nobody):
    root = Path(shutil.copytree(digits[1], shared_folder / "shards"))
    root.chmod(0o755)
    (root / "train-000000.tar").chmod(0o600)
    with as_nobody(), pytest.raises(UserError, match=r"train-000000.tar: Permission denied: ask its owner"):
        load_index(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # what other tests left to be closed
    open_files = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 1, hard))
    try:
        with pytest.raises(UserError, match=r"Too many open files: allow more of them with `ulimit -n \d+`"):
            SplitImages(*digits, "train", Whole(1437), BlockCache(Path(), 0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_missing_and_cut_shards_are_refused(digits, tmp_path):
    root = copy(digits, tmp_path)
    os.truncate(root / "train-000001.tar", 5000)
    with pytest.raises(UserError, match=r"train-000001\.tar: has 5000 bytes, the index says 430080"):
        load_index(root)
    (root / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar: No such file"):
        load_index(root)


# Verifying.


def alter(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def edit(root, place, value):
    path = root / "index.json"
    index = json.loads(path.read_text())
    inner = index
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(index))


def test_a_whole_folder_has_no_faults(digits):
    assert verify(digits[1]) == []


def test_every_fault_is_found_and_names_its_file(digits, tmp_path):
    root = copy(digits, tmp_path)
    alter(root / "train-000000.tar", 5000)  # a pixel
    os.truncate(root / "train-000001.tar", 5000)
    (root / "train-000002.tar").unlink()
    shutil.copy(root / "test-000000.tar", root / "train-000009.tar")
    (root / "test-000000.tar.json").write_text("{}")
    faults = verify(root)
    damaged = f"{root}/train-000000.tar: record train-000000: damaged images: 1, first at place "
    assert faults.pop(1).startswith(damaged)
    expected = {
        "train-000000.tar": "SHA-256",
        "train-000001.tar": "has 5000 bytes",
        "train-000002.tar": "No such file",
        "train-000009.tar": "not in the index",
        "test-000000.tar.json": "does not agree",
    }
    assert len(faults) == len(expected)
    for name, text in expected.items():
        assert any(fault.startswith(f"{root / name}: ") and text in fault for fault in faults)
    assert not any("\n" in fault for fault in faults)


def test_an_altered_byte_anywhere_is_found(digits, tmp_path):
    root = copy(digits, tmp_path)
    path = root / "test-000000.tar"
    for offset in np.linspace(0, path.stat().st_size - 1, 25, dtype=int):
        alter(path, int(offset))
        assert any(fault.startswith(str(path)) for fault in verify(root)), offset
        alter(path, int(offset))
    assert verify(root) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("source_sha256",), "0" * 64),
        (("classes",), 9),
        (("source",), "mnist"),
        ((*SHARD, "sha256"), "0" * 64),
        ((*RECORD, "key"), "train-other"),
        ((*RECORD, "images", "offset"), 513),
        ((*RECORD, "labels", "bytes"), 929),
        ((*RECORD, "count"), 99),
    ],
)
def test_an_edited_index_is_found(digits, tmp_path, place, value):
    root = copy(digits, tmp_path)
    edit(root, place, value)
    assert verify(root)


def test_labels_beyond_the_classes_are_found(digits, tmp_path):
    root = copy(digits, tmp_path)
    edit(root, ("classes",), 9)
    assert any("labels are not all in 0 .. 8" in fault for fault in verify(root))


def test_a_shard_that_is_no_tar_is_found(digits, tmp_path):
    root = copy(digits, tmp_path)
    path = root / "test-000000.tar"
    with path.open("r+b") as file:
        file.write(b"\xff" * 512)
    with pytest.raises(tarfile.TarError):
        tarfile.open(path).close()
    assert any("cannot be read as tar" in fault for fault in verify(root))


def test_no_index_is_one_fault(tmp_path):
    assert len(verify(tmp_path)) == 1
