"""Shards that are written to object stores: the same files as on the disk, completed and protected alike."""

import pytest

from data.errors import UserError
from data.prepare import prepare
from data.prepare.verify import verify
from data.read.index import INDEX_NAME
from data.storage.storage import names_in, storage_of
from launch import prepare as prepare_command
from tests.servers import s3_of

ROOT = "s3://bucket/written"


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A folder of S3 with nothing in it."""
    (tmp_path / "empty").mkdir()
    with s3_of(tmp_path / "empty") as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        yield storage_of(ROOT)


def write(out, caplog=None, **options):
    if caplog:
        caplog.clear()
    prepare("digits", out, record_images=200, shard_records=2, progress=False, **options)


def content_of(storage):
    names = names_in(storage) - {".lock"}
    return {name: bytes(storage.fetch(name, 0, None).content) for name in names}


def test_they_are_those_of_the_disk_and_completed_like_them(far, tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "here")
    write(ROOT, workers=2)
    whole = content_of(far)
    assert whole == content_of(storage_of(tmp_path / "here"))
    assert verify(ROOT) == []
    write(ROOT, caplog)
    assert f"{ROOT} is whole, nothing to do" in caplog.text
    for name in (INDEX_NAME, "train-000001.tar"):
        far.remove(name)
    write(ROOT, caplog)
    assert "(4 shards were there already)" in caplog.text
    assert content_of(far) == whole


def test_the_command_verifies_them_where_they_lie(far, capsys):
    write(ROOT)
    assert prepare_command.main(["verify", ROOT]) == 0
    assert f"{ROOT} is whole: 1,437 train and 360 test images" in capsys.readouterr().out


def test_files_of_others_stay(far):
    far.write("train-000000.tar", b"of somebody else")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds files that no index or sidecar of ours names \(train-000000.tar\)"):
            write(ROOT, overwrite=overwrite)
    assert content_of(far) == {"train-000000.tar": b"of somebody else"}


def test_a_shard_that_fails_is_not_there(far):
    def fail():
        with far.writing("train-000000.tar") as path:
            path.write_bytes(b"half of it")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names_in(far) == set()


def test_a_server_that_takes_no_files_is_refused():
    with pytest.raises(UserError, match="nothing can be written to http://127.0.0.1/shards: give a folder, or"):
        prepare("digits", "http://127.0.0.1/shards", progress=False)
