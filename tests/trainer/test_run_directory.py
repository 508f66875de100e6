"""The folder of a run: one run at a time, and what it was asked stays."""

import subprocess
import sys

import pytest

from data.errors import UserError
from trainer.config import load_config
from trainer.run_directory import RunDirectory

HOLD = """
import sys
from trainer.run_directory import RunDirectory
run = RunDirectory(sys.argv[1])
run.acquire(resume=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_live_process_holds_the_folder_and_a_killed_one_does_not(root, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    run = RunDirectory(str(tmp_path / "run"))
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
        run.acquire(resume=True)
    holder.kill()
    holder.communicate()
    run.acquire(resume=True)
    assert "process" in (tmp_path / "run/lock").read_text()


def test_a_run_is_never_written_over(tiny):
    config = tiny()
    run = RunDirectory(config.run_dir)
    run.acquire(resume=False)
    run.create(config, 0, None, {})
    with pytest.raises(UserError, match="already holds a run; continue it with --resume auto"):
        RunDirectory(config.run_dir).refuse_present()


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "metrics.jsonl",
        "evaluations.jsonl",
        "codec.safetensors",
        "checkpoints/x",
        "samples/x",
        "reports/x",
        "trackers/x",
    ],
)
def test_anything_of_a_run_is_never_written_over(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="already holds a run.*is there"):
        RunDirectory(str(tmp_path)).acquire(resume=False)
    with pytest.raises(UserError, match="but no run"):
        RunDirectory(str(tmp_path)).acquire(resume=True)
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_called_lock_that_is_none_stays(tmp_path):
    (tmp_path / "lock").write_text("mine")
    with pytest.raises(UserError, match="lock is no lock of a run"):
        RunDirectory(str(tmp_path)).acquire(resume=False)
    assert (tmp_path / "lock").read_text() == "mine"


def test_a_run_json_of_another_tool_is_no_run(tmp_path):
    (tmp_path / "run.json").write_text('{"project": "mine"}')
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(UserError, match="but no run"):
        RunDirectory(str(tmp_path)).acquire(resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": 1}\n'


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff")])
def test_a_lock_that_is_something_else_is_refused(tmp_path, make):
    make(tmp_path / "lock")
    with pytest.raises(UserError, match="lock .*another run_dir"):
        RunDirectory(str(tmp_path)).acquire(resume=True)


@pytest.mark.parametrize("name", ["samples", "checkpoints", "reports"])
def test_a_file_in_place_of_a_folder_of_a_run_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for resume in (True, False):
        with pytest.raises(UserError, match=name):
            RunDirectory(str(tmp_path)).acquire(resume)


def test_what_stands_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    for path, what in (
        ("link", "link: a link to nowhere, which is not"),
        ("link/run", "link: a"),
        ("file", "file: not a folder"),
    ):
        with pytest.raises(UserError, match=f"cannot be made .*{what}.*another run_dir"):
            RunDirectory(str(tmp_path / path)).acquire(resume=True)


def test_the_configuration_until_a_change_stays(tiny):
    first, second = tiny(), tiny("train.total_images=960")
    run = RunDirectory(first.run_dir)
    run.acquire(resume=True)
    for config, images in ((first, 0), (first, 32), (second, 64)):
        run.create(config, images, None, {})
        identity = run.record().id
    assert load_config(run.config) == second
    assert load_config(run.path / "config-until-000000000064.yaml") == first
    assert len(list(run.path.glob("config*.yaml"))) == 2
    assert RunDirectory(first.run_dir).record().id == identity is not None
    assert run.record().starts == 3


def test_evaluations_by_place(tmp_path):
    run = RunDirectory(str(tmp_path))
    assert run.evaluation() is None
    run.evaluations.write_text('{"images": 0, "x": 1}\n{"images": 8, "x": 2}\n{"images": 8, "x": 3}\n')
    assert run.evaluation()["x"] == 1
    assert run.evaluation(8)["x"] == 3
    assert run.evaluation(16) is None
