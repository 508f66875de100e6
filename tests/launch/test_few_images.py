"""A data set of two training and two test images of one class: what counts by default takes what there is."""

import json

import numpy as np
import pytest
from PIL import Image

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from data.prepare import prepare
from evaluation.figures import FIGURES
from launch import sample
from tests.launch.test_sample import COMMANDS
from tests.tiny import TINY
from trainer.build import build_task
from trainer.config import Config

METHODS = ("biglearn_u", "biglearn_t", "vae")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The folder of an export of each method, not trained, whose images are these four."""
    base = tmp_path_factory.mktemp("few")
    for split in ("train", "test"):
        folder = base / "images" / split / "cat"
        folder.mkdir(parents=True)
        for number, value in enumerate((40, 200)):
            Image.new("RGB", (32, 32), (value, 90, 255 - value)).save(folder / f"{number}.png")
    prepare("folder", base / "shards", source_dir=base / "images", image_size=32, workers=1, progress=False)
    data = TINY["data"] | {"source": "folder", "shards": str(base / "shards")}
    for method in METHODS:
        config = Config.model_validate(TINY | {"data": data, "method": method, "run_dir": "run"})
        BigLearnVAE(build_task(config).model, Description.of(config, 0)).export(base / method)
    return base


def possible(method: str) -> set[str]:
    return {f"figure-{name}.png" for name, figure in FIGURES.items() if method != "vae" or not figure.needs_parts}


@pytest.mark.parametrize("method", METHODS)
def test_every_figure_is_drawn(start, exports, tmp_path, method):
    done = start("python", "launch/figures.py", "--run", exports / method, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == possible(method)


def test_more_images_than_there_are_can_only_be_asked_for(start, exports, tmp_path):
    command = ("python", "launch/figures.py", "--run", exports / "vae", "--out", tmp_path, "--figures", "9")
    done = start(*command, "--images", "3")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "3 test images are asked for, 2 are there" in done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_all_is_measured(start, exports, tmp_path, method):
    done = start("python", "launch/evaluate.py", "--run", exports / method, "--out", tmp_path, "--bound-images", "1")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "±" not in done.stdout  # which one image does not tell
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert {row["images"] for part in ("inpainting", "filling") for row in report[part]} == {2}
    assert report["probe"] == []  # one class
    assert {row["standard_error"] for row in report["bounds"]} == {None}
    assert all(np.isfinite([row["mean"] for row in report["bounds"]]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_works(monkeypatch, exports, tmp_path, name):
    monkeypatch.setattr(sample, "show_warnings", lambda rank: None)  # it would add a handler for good
    arguments = [text.replace("6", "2") for text in COMMANDS[name]]
    assert sample.main([name, *arguments, "--model", str(exports / "biglearn_t"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}.npz").exists()
