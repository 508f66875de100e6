"""launch/figures.py as a person starts it."""

from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from evaluation.figures import FIGURES
from launch.figures import NUMBERS, _chosen
from tests.evaluation.test_figures import made_run
from trainer.build import build_task
from trainer.config import load_config

NAMES = {*FIGURES, "13"}
_MISSING = 115  # the grey of pixels that are not known


@pytest.fixture(scope="module")
def vae_run(digits_run, tmp_path_factory):
    """What figure 13 needs of a run of the joint VAE."""
    return made_run(digits_run, tmp_path_factory.mktemp("made") / "vae", "vae")


@pytest.fixture(scope="module")
def vae_export(digits_run, tmp_path_factory):
    """The joint VAE, not trained."""
    config = load_config(digits_run / "config.yaml", ["method=vae"])
    folder = tmp_path_factory.mktemp("export") / "vae"
    BigLearnVAE(build_task(config).model, Description.of(config, 0)).export(folder)
    return folder


def test_every_figure_is_drawn_into_the_run(start, digits_run, vae_run):
    done = start("python", "launch/figures.py", "--run", digits_run, "--against", vae_run)
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout
    folder = digits_run / "reports/figures"
    assert {path.name for path in folder.iterdir()} == {f"figure-{name}.png" for name in NAMES}
    for name in NAMES:
        picture_HWC = np.asarray(Image.open(folder / f"figure-{name}.png").convert("RGB"))
        assert picture_HWC.shape[1] > 600
        assert (picture_HWC == 255).all(-1).mean() < 0.97  # no blank
        missing = (picture_HWC == _MISSING).all(-1).mean()
        assert (missing > 0.02) == (name not in ("9", "13"))
        frame_HWC = np.concatenate([picture_HWC[:, -2:].reshape(-1, 3), picture_HWC[-2:].reshape(-1, 3)])
        assert (frame_HWC == 255).all()  # nothing is cut


def test_a_joint_vae_has_what_it_can(start, vae_export, tmp_path):
    done = start("python", "launch/figures.py", "--run", vae_export, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "figure 3, 6-8, 10, 11, 12, 14, because the joint VAE has no p(z | x_S)" in done.stdout
    assert "figure 13, because it compares two runs" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figure-9.png"]


def test_every_number_can_be_asked_for():
    assert set(_chosen(Namespace(figures=NUMBERS), {})) == NAMES
    assert _chosen(Namespace(figures=["8", "3", "6"]), {}) == ["6-8", "3"]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--figures", "13"), "give the directories of both"),
        (("--figures", "13", "--against", "nowhere"), "nowhere"),
        (("--figures", "3", "--images", "99999"), "360 are there"),
        (("--run", "nowhere"), "holds no run, no checkpoint and no export"),
        (("--figures", "9", "--out", "README.md"), "choose another --out"),
    ],
)
def test_mistakes(start, digits_run, tmp_path, arguments, cause):
    run = () if "--run" in arguments else ("--run", digits_run)
    out = () if "--out" in arguments else ("--out", tmp_path)
    assert_mistake(start("python", "launch/figures.py", *run, *out, *arguments), cause)


def test_mistakes_of_an_export(start, vae_export, tmp_path):
    command = ("python", "launch/figures.py", "--run", vae_export)
    assert_mistake(start(*command, cold=True), "give --out DIR")
    assert_mistake(start(*command, "--out", tmp_path, "--figures", "9", "3"), "figure 3 cannot be drawn")


def assert_mistake(done, cause: str) -> None:
    assert done.returncode == 2
    assert cause in done.stderr
    assert len(done.stderr.splitlines()) == 1
