"""Runs whose images lie in tar files of other tools: on the disk, on a web server and in S3."""

import json
import os
import signal

import pytest

from launch.commands.cli import LOST
from tests.data.tars.conftest import write_tars
from tests.launch.conftest import losses
from tests.servers import S3_ENVIRONMENT, s3_of, serving

WOVEN = ["data.source=webdataset", "data.memory_bytes=0"]
WEAVE = ["--lanes", "4", "--block", "4", "--window", "2"]
TRAIN = "launch/train.py"


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"), images=220, per_tar=60)


@pytest.fixture
def run_of(start, tiny_file, tmp_path):
    """The options of a run on these shards, whose index is made first."""

    def make(name, shards, **environment):
        index = tmp_path / f"index-{name}"
        done = start("python", "launch/prepare.py", "index", shards, "--out", index, *WEAVE, **environment)
        assert done.returncode == 0, done.stderr
        places = [f"run_dir={tmp_path / name}", f"data.shards={shards}", f"data.index={index}"]
        return ["--config", tiny_file, "--resume", "auto", *WOVEN, *places, f"data.cache={tmp_path / 'cache'}"]

    return make


@pytest.mark.cluster
def test_killed_ranks_on_s3_go_on_as_one_that_reads_the_disk(start, run_of, tars, tmp_path):
    shards = "{00000..00003}.tar"
    here = start("python", TRAIN, *run_of("here", f"{tars}/{shards}"))
    assert here.returncode == 0, here.stderr
    with s3_of(tars) as environment:
        far = run_of("far", f"s3://bucket/set/{shards}", **environment)
        fault = "kill trainer.engines.accelerate_engine:AccelerateEngine.step 4 1"
        ranks = start.ranks_in_background(2, "tests/faults.py", *far, FAULT=fault, **environment)
        killed = [start.finish(rank) for rank in ranks]
        assert sorted(each.returncode for each in killed) == [-signal.SIGKILL, LOST], killed
        done = start("python", TRAIN, *far, **environment)
        assert done.returncode == 0, done.stderr
        other = start("python", TRAIN, *far, "data.memory_bytes=2147483648", "train.total_images=128", **environment)
    assert other.returncode == 2
    assert "data_order woven from 4 lanes, windows of 2 blocks of 4 images there, None here" in other.stderr
    assert losses(tmp_path / "far") == pytest.approx(losses(tmp_path / "here"), rel=2e-5)
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("??/*"))
    for name in ("far", "here"):
        written = "".join(path.read_text() for path in (tmp_path / name).glob("*.*"))
        assert not [secret for secret in S3_ENVIRONMENT.values() if len(secret) > 4 and secret in written]


def test_a_web_server_is_all_that_is_needed(start, tiny_file, tars, tmp_path):
    """And what is kept on the disk serves a second run, without a server."""
    with serving(tars, gives_ranges=False) as server:
        shards = f"data.shards={server.address}/{{00000..00003}}.tar"
        options = ["--config", tiny_file, f"run_dir={tmp_path / 'run'}", "data.source=webdataset", shards]
        options += [f"data.index={tmp_path / 'index'}", f"data.cache={tmp_path / 'cache'}"]
        done = start("python", TRAIN, *options)
        assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'index'} has no index; making it from the headers of http://" in done.stdout
    assert len(losses(tmp_path / "run")) == 6
    again = start("python", TRAIN, *options, f"run_dir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
    counted = start("python", TRAIN, *options, "--dry-run")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    trained = sum(tar["train"] for tar in manifest["tars"])
    assert json.loads(counted.stdout.splitlines()[-1])["images_per_epoch"] == trained


@pytest.mark.parametrize(
    ("shards", "reason"),
    [
        ("pipe:touch {}/made.tar", "would run a program"),
        ("{}/{{9..8}}.tar::{}/x.tar", ".tar cannot be read (No such file or directory)"),
        ("{}/*.tar", "cannot be listed"),
    ],
)
def test_mistakes_are_one_line(start, tiny_file, tmp_path, shards, reason):
    folder = tmp_path / "absent"
    shards = shards.format(folder, folder)
    where = [f"run_dir={tmp_path / 'run'}", f"data.index={tmp_path / 'index'}"]
    done = start("python", TRAIN, "--config", tiny_file, "data.source=webdataset", f"data.shards={shards}", *where)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not os.path.exists(tmp_path / "run" / "config.yaml")
