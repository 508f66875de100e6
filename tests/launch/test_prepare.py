"""launch/prepare.py as its user meets it: a command, its lines and its exit code."""

import os
import struct

import numpy as np
import pytest
from PIL import Image

from tests.programs import ROOT


@pytest.fixture(scope="module")
def run(start):
    """run(*arguments): launch/prepare.py in a process of its own."""

    def run(*arguments, script="launch/prepare.py", **options):
        return start("python", ROOT / script, *arguments, **options)

    return run


@pytest.fixture(scope="module")
def prepared(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "digits"
    return out, run("digits", "--out", out)


def assert_user_error(result, *words):
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert str(word) in result.stderr


def test_it_says_what_it_wrote(prepared):
    out, result = prepared
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"wrote {out}: 1,437 train and 360 test images in 2 shards, 1.9 MB, in ")
    assert (out / "index.json").exists()


def test_a_second_run_does_nothing(run, prepared):
    result = run("digits", "--out", prepared[0])
    assert result.returncode == 0
    assert "is whole, nothing to do" in result.stdout


def test_the_default_folder_is_below_the_current_one(run, tmp_path):
    result = run("digits", "--image-size", 8, "--workers", 1, folder=tmp_path, cold=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "datasets" / "digits" / "index.json").exists()
    assert run("verify", "datasets/digits", folder=tmp_path).returncode == 0


def test_another_size_is_refused_and_overwritten_on_request(run, tmp_path):
    out = tmp_path / "digits"
    assert run("digits", "--out", out, "--image-size", 8).returncode == 0
    assert_user_error(run("digits", "--out", out), "holds other data", out, "--overwrite")
    assert run("digits", "--out", out, "--overwrite").returncode == 0


def test_verify_prints_each_fault_and_exits_1(run, prepared, tmp_path):
    result = run("verify", prepared[0])
    assert (result.returncode, result.stdout.count("\n")) == (0, 1)
    assert "is whole: 1,437 train and 360 test images in 2 shards, 1.9 MB" in result.stdout

    out = tmp_path / "digits"
    run("digits", "--out", out)
    os.truncate(out / "train-000000.tar", 5000)
    (out / "test-000000.tar").unlink()
    result = run("verify", out)
    assert (result.returncode, result.stderr) == (1, "")
    faults = result.stdout.splitlines()
    assert len(faults) == 2
    assert faults[0].startswith(f"{out}/train-000000.tar: has 5000 bytes")
    assert faults[1].startswith(f"{out}/test-000000.tar: No such file")


def test_verify_of_nothing_names_the_command(run, tmp_path):
    result = run("verify", tmp_path / "nowhere")
    assert result.returncode == 1
    assert "python launch/prepare.py mnist --out" in result.stdout
    assert result.stdout.count("\n") == 1


def test_a_missing_source_folder_is_one_line(run, tmp_path):
    result = run("mnist", "--source", tmp_path, "--out", tmp_path / "out")
    assert_user_error(result, tmp_path, "train-images-idx3-ubyte", "--source")
    assert not (tmp_path / "out").exists()


def test_debug_adds_the_traceback(run, tmp_path):
    result = run("mnist", "--source", tmp_path, "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "NAME"),
        (("minst",), "invalid choice: 'minst'"),
        (("digits", "--image-size", "0"), "0 is not a whole number"),
        (("digits", "--workers", "two"), "two is not a whole number"),
        (("digits", "--source", "x"), "--source"),
        (("folder", "--max-damaged", "-1"), "-1 is not a whole number"),
    ],
)
def test_a_wrong_command_line_exits_2_without_traceback(run, arguments, words):
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_help_has_examples(run):
    result = run("--help")
    assert result.returncode == 0
    assert "python launch/prepare.py mnist --source" in result.stdout
    for option in ("--source", "--out", "--image-size", "--workers", "--overwrite"):
        assert option in run("mnist", "--help").stdout
    for name, size in (("celeba", 128), ("folder", 64)):
        shown = run(name, "--help").stdout
        assert "--max-damaged" in shown
        assert f"pixels; default: {size}" in shown


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve images of two classes, one of them cut short."""
    root = tmp_path_factory.mktemp("pictures")
    for n in range(12):
        path = root / ("train" if n < 9 else "test") / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (n, 0, 0)).save(path)
    os.truncate(root / "train/b/5.png", 40)
    (root / "train/notes.txt").write_text("text")
    return root


def test_a_folder_of_images_is_written_and_what_is_wrong_with_it_is_told(run, pictures, tmp_path):
    out = tmp_path / "out"
    result = run("folder", "--source", pictures, "--out", out, "--image-size", 16)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "files that are no images, left out: 1, first train/notes.txt"
    assert lines[1] == "2 classes, by their folders: 0 is a (6 images), 1 is b (6 images)"
    assert lines[2].startswith("train/b/5.png is damaged: ")
    assert lines[3].startswith(f"wrote {out}: 9 train and 3 test images in 2 shards")
    result = run("verify", out)
    assert (result.returncode, result.stderr) == (0, "")
    assert "9 train and 3 test images in 2 shards" in result.stdout
    assert result.stdout.endswith("; 1 stand in for damaged ones\n")


def test_more_damaged_images_than_accepted_are_one_line(run, pictures, tmp_path):
    result = run("folder", "--source", pictures, "--out", tmp_path / "out", "--max-damaged", 0)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: damaged images: 1 or more, which is more than --max-damaged 0 (first train/b/5"
    )
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("celeba",), ("list_eval_partition.txt", "https://mmlab", "--source DIR")),
        (("folder",), ("--source DIR",)),
        (("folder", "--source", "s3://bucket/pictures"), ("folders of the machine", "s3://bucket/pictures")),
        (("digits", "--out", "pipe:rm -r x"), ("nothing can be written to", "pipe:rm -r x")),
        (("folder", "--source", "pics.tar"), ("pics.tar is an archive, not a folder", "unpack")),
        (("digits", "--out", "README.md"), ("README.md is a file, not a folder",)),
    ],
)
def test_a_source_that_is_missing_or_no_folder_is_one_line(run, arguments, words):
    assert_user_error(run(*arguments), *words)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder in torchvision's layout with files of MNIST's names and sizes, and made-up content."""
    root = tmp_path_factory.mktemp("torchvision")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = bytes(count * 28 * 28)
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return root


def test_mnist_is_written_in_parallel(run, mnist, tmp_path):
    result = run("mnist", "--source", mnist, "--out", tmp_path / "out", "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "60,000 train and 10,000 test images in 10 shards" in result.stdout
    assert run("verify", tmp_path / "out").returncode == 0


def test_an_interrupt_exits_130_and_the_next_run_goes_on(run, mnist, tmp_path):
    out = tmp_path / "out"
    arguments = ["mnist", "--source", mnist, "--out", out, "--workers", "1"]
    fault = {"COMMAND": "prepare.py", "FAULT": "SIGINT data.prepare.writing:write_shard 3"}
    interrupted = run(*arguments, script="tests/faults.py", **fault)
    assert (interrupted.returncode, interrupted.stderr) == (130, "interrupted\n")
    assert len(list(out.glob("*.tar.json"))) == 2
    assert not (out / "index.json").exists()
    result = run("mnist", "--source", mnist, "--out", out)
    assert result.returncode == 0
    assert "shards were there already" in result.stdout
