"""Every command that is shown works."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.prepare import prepare
from tests.command_checks import ROOMS, Call, check
from tests.programs import ROOT
from tests.shown import Shown, of_page, scripts, shown_commands

SHOWN = shown_commands()
WITH_HELP = [
    script
    for script in scripts()
    if script.startswith(("benchmarks/", "launch/")) and "Parser(" in (ROOT / script).read_text()
]


@pytest.fixture
def place(tmp_path, monkeypatch, once, digits_shards) -> Path:
    """The working folder. Its run is tests/before/run, which needs no training."""
    of_run = once("digits-16", lambda folder: prepare("digits", folder, image_size=16, progress=False))
    for name, kind in (("runs/digits_8x8-biglearn_u", "run"), ("digits-model", "export"), ("my-export", "export")):
        shutil.copytree(ROOT / "tests/before" / kind, tmp_path / name)
    links = {room: ROOT / room for room in ROOMS} | {"datasets/digits": of_run}
    links |= {f"datasets/{name}": digits_shards for name in ("mnist", "celeba_latents")}
    links |= {f"{name}/{path.name}": path for path in digits_shards.iterdir() for name in ("datasets/celeba", "folder")}
    for name, target in links.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    picture = np.full((40, 40, 4), 255, np.uint8)
    picture[20:] = 0
    (tmp_path / "photos").mkdir()
    for name in ("photo.png", "hole.png", "strokes.png", "photos/one.png"):
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "samples/encode").mkdir(parents=True)
    np.savez(tmp_path / "samples/encode/encode.npz", mu=np.zeros((3, 4), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def as_ever_afterwards(monkeypatch):
    """Scripts install no handlers of signals and of the log in this process."""
    monkeypatch.setattr("trainer.ranks.stop.StopRequest.listen", lambda self: self)
    for script in ("export", "sample"):
        monkeypatch.setattr(f"launch.{script}.show_warnings", lambda rank: None)


def test_commands_are_found_in_blocks_and_between_backticks():
    page = """Start `torchrun`, `python launch/train.py`, `make test` or `python launch/export.py --model RUN
--out DIR`.

    python a.py --b \\
        --c          # a remark
    unknown

    code = 1
"""
    assert [*of_page(page)] == [
        "python a.py --b --c",
        "unknown",
        "make test",
        "python launch/export.py --model RUN --out DIR",
    ]
    assert Shown("", "a [b=c|d] [e ...] [f]").meant() == ["a b=c  f", "a b=d  f"]


@pytest.mark.parametrize("script", WITH_HELP)
def test_the_help_of_a_script_has_an_example(script, capsys):
    with pytest.raises(SystemExit) as left:
        Call(script, [], {}).module.main(["--help"])
    assert left.value.code == 0
    help_text = capsys.readouterr().out
    assert any(shown.line in help_text for shown in SHOWN if shown.place == script)


@pytest.mark.parametrize("shown", {shown.line: shown for shown in reversed(SHOWN)}.values(), ids=str)
def test_a_command_that_is_shown_works(shown: Shown, place):
    for line in shown.meant():
        for text in line.split(" && "):
            check(text)
