"""Streams that cannot be written: the work counts."""

import shlex
import sys

import pytest

from data.prepare.verify import verify
from launch.commands.orphans import _LAUNCHER
from tests.launch.conftest import losses

STREAMS = [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"]


def shell(start, streams, *command):
    """The command as a shell starts it, with streams as it says."""
    return start("bash", "-c", f"exec {shlex.join(map(str, [sys.executable, *command]))} {streams}")


@pytest.mark.parametrize("streams", STREAMS)
def test_a_data_set_is_written_whatever_the_streams(start, tmp_path, streams):
    done = shell(start, streams, "launch/prepare.py", "digits", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert verify(tmp_path / "out") == []
    assert ("could not be written (No space" in done.stderr) == (streams == ">/dev/full")


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_training_goes_to_its_end_whatever_the_streams(start, tiny_file, tmp_path, reference, streams):
    run = tmp_path / "run"
    done = shell(start, streams, "launch/train.py", "--config", tiny_file, f"run_dir={run}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "reports/summary.json").exists()
    assert losses(run) == losses(reference)  # and no words among them


def test_a_reader_that_has_had_enough_ends_nothing(start, tmp_path):
    done = start(
        "bash",
        "-c",
        f"{sys.executable} launch/prepare.py digits --out {tmp_path / 'out'} | true; echo ${{PIPESTATUS[0]}}",
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert verify(tmp_path / "out") == []


def test_a_name_that_the_encoding_lacks_is_written_as_escapes(start, tmp_path):
    from PIL import Image

    (tmp_path / "bücher").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "bücher" / f"{number}é.png")
    (tmp_path / "bücher" / "öde.txt").write_text("")
    command = [
        "launch/prepare.py",
        "folder",
        "--source",
        tmp_path / "bücher",
        "--out",
        tmp_path / "aus",
        "--image-size",
        8,
    ]
    done = start("python", *command, cold=True, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\xf6de.txt" in done.stdout
    assert "Logging error" not in done.stderr


@pytest.mark.parametrize(
    ("command", "is_launcher"),
    [
        ("/opt/bin/python /opt/bin/deepspeed launch/train.py --config x", True),
        ("python -u -m deepspeed.launcher.launch --world_info=x launch/train.py", True),
        ("python -m torch.distributed.run launch/train.py", True),
        ("torchrun launch/train.py", True),
        ("python /x/launch/pipeline.py --config x", True),
        ("bash run.sh configs/deepspeed.yaml", False),
        ("vim torchrun.md", False),
        ("bash start.sh accelerate", False),
        ("python my/pipeline.py --config x", False),
    ],
)
def test_which_command_is_a_launcher(command, is_launcher):
    arguments = b"".join(argument.encode() + b"\0" for argument in command.split())
    assert bool(_LAUNCHER.fullmatch(arguments)) == is_launcher
