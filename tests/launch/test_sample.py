"""launch/sample.py and launch/export.py as a person starts them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from launch import sample
from launch.commands.cli import Parser
from model import masks

TEST = ("--test", "6")
COMMANDS = {
    "generate": ("--count", "5"),
    "encode": (*TEST, "--hide", "random"),
    "reconstruct": TEST,
    "infer": (*TEST, "--hide", "half", "--draws", "2"),
    "inpaint": (*TEST, "--hide", "block", "--draws", "2"),
    "strokes": (*TEST, "--hide", "stroke", "--s-ratio", "0.2", "--draws", "2"),
    "pseudo-gibbs": (*TEST, "--hide", "half", "--draws", "2", "--burn-in", "2", "--steps", "1"),
    "interpolate": (*TEST, "--steps", "3"),
    "vary-z": (*TEST, "--hide", "random", "--dimensions", "0", "3"),
    "vary-x": (*TEST, "--delta", "0.2"),
    "bound": (*TEST, "--hide", "random", "--samples", "2"),
}
SHAPES = {
    "generate": {"images": (5, 32, 32, 3)},
    "encode": {"mu": (6, 32), "logvar": (6, 32)},
    "reconstruct": {"images": (6, 32, 32, 3)},
    "interpolate": {"images": (3, 3, 32, 32, 3)},
    "vary-z": {"base": (6, 32, 32, 3), "changed": (2, 6, 32, 32, 3)},
    "vary-x": {"mu_before": (6, 32), "mu_after": (6, 32)},
    "bound": {"bound": (6,), "elbo": (6,)},
}
WITHOUT_SHEET = ("encode", "bound")


@pytest.fixture
def called(monkeypatch, digits_run, tmp_path):
    """called(name, *arguments): the command of this name in this process, on the model of digits_run into tmp_path."""
    monkeypatch.setattr(sample, "show_warnings", lambda rank: None)  # it would add a handler for good

    def call(name: str, *arguments) -> None:
        for option, value in (("--model", digits_run), ("--out", tmp_path)):
            if option not in arguments:
                arguments += (option, value)
        assert sample.main([name, *map(str, arguments)]) == 0

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_its_sheet_and_its_arrays(called, tmp_path, name):
    called(name, *COMMANDS[name])
    arrays = np.load(tmp_path / f"{name}.npz", allow_pickle=False)
    for key, shape in SHAPES.get(name, {"images": (2, 6, 32, 32, 3), "seen": (6, 32, 32)}).items():
        assert arrays[key].shape == shape
        assert np.isfinite(arrays[key]).all()
    assert (tmp_path / f"{name}.png").exists() == (name not in WITHOUT_SHEET)
    if name not in WITHOUT_SHEET:
        assert Image.open(tmp_path / f"{name}.png").width > 300


@pytest.mark.parametrize("text", ["-1e-1", "-.5", "-5", "-5.", "-1_000", "-2E+2"])
def test_a_negative_number_may_be_written_in_any_form(text):
    arguments = ["--model", "run", "--test", "2", "--delta", text, "--dimensions", "1", "-2", "-1_0", "--out", "-5"]
    options = sample._parser().parse_args(["vary-z", *arguments])
    assert (options.delta, options.dimensions, options.out) == (float(text), [1, -2, -10], "-5")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("--delta", text) for text in ("nan", "-inf", "1e400", "-1e400", "1e39", "five")),
        *(("--s-ratio", text) for text in ("-1e-1", "1.5")),
        *(("--seed", text) for text in ("-1", "1e3", str(2**63))),
        *(("--test", text) for text in ("0", "-1e0", str(10**20))),
        ("--dimensions", "-1e0"),
    ],
)
def test_a_number_that_cannot_be_is_refused_as_such(capsys, option, text):
    with pytest.raises(SystemExit) as left:
        sample._parser().parse_args(["vary-z", "--model", "run", option, text])
    assert left.value.code == 2
    assert re.search(rf"error: argument {option}: .*{re.escape(text)}", capsys.readouterr().err)


@pytest.mark.parametrize("parse", ["parse_args", "parse_intermixed_args"])
def test_a_negative_number_is_told_from_options_and_overrides(parse):
    parser = Parser()
    parser.add_argument("--values", type=float, nargs=2)
    parser.add_argument("overrides", nargs="*")
    options = getattr(parser, parse)(["--values", "-1e-1", "-2.", "seed=-1e3"])
    assert (options.values, options.overrides) == ([-0.1, -2.0], ["seed=-1e3"])


def test_every_command_is_tried_and_has_an_example():
    parser = sample._parser()
    commands = parser._subparsers._group_actions[0].choices
    assert commands.keys() == COMMANDS.keys() | {"decode"}
    for name, command in commands.items():
        assert f"launch/sample.py {name} --model" in command.epilog
    assert sample.SHAPES == masks.SHAPES


def test_codes_go_back_to_images(called, tmp_path):
    for name, arguments in (("encode", TEST), ("reconstruct", TEST), ("decode", ("--codes", tmp_path / "encode.npz"))):
        called(name, *arguments)
    decoded, reconstructed = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("decode", "reconstruct"))
    assert np.allclose(decoded, reconstructed, atol=1e-5)
    np.save(tmp_path / "nan.npy", np.full((2, 32), np.nan))
    with pytest.raises(UserError, match="what is no code"):
        called("decode", "--codes", tmp_path / "nan.npy")


def test_an_export_completes_a_persons_picture(start, digits_run, tmp_path):
    """A picture of any size with a transparent hole: what is there comes back, the hole is filled."""
    done = start("python", "launch/export.py", "--model", digits_run, "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model/config.json").read_text())["method"] == "biglearn_u"
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[10:50, 28:36, :3] = 255
    picture[..., 3] = 255
    picture[32:] = 0
    Image.fromarray(picture).save(tmp_path / "hole.png")
    common = ("--model", tmp_path / "model", "--out", tmp_path, "--images", tmp_path / "hole.png")
    done = start("python", "launch/sample.py", "inpaint", *common, "--draws", "2")
    assert done.returncode == 0, done.stderr
    arrays = np.load(tmp_path / "inpaint.npz")
    assert arrays["names"].tolist() == ["hole"]
    assert arrays["seen"][0, :16].all()
    assert not arrays["seen"][0, 16:].any()
    known = np.asarray(Image.fromarray(picture[..., :3]).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    assert np.allclose(arrays["images"][:, 0, :15], known[None, :15], atol=1 / 255)
    assert arrays["images"][:, 0, 16:].max() > 0.2


def test_a_hole_that_is_cut_out_of_the_mask_is_missing_as_one_of_the_image_is(called, tmp_path):
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[:16, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "hole.png")
    np.save(tmp_path / "hole.npy", rgba[..., 3])
    Image.new("RGB", (32, 32), "gray").save(tmp_path / "whole.png")
    for picture, *mask in (("hole.png",), ("whole.png", "hole.png"), ("whole.png", "hole.npy")):
        masks = [argument for name in mask for argument in ("--mask", tmp_path / name)]
        called("inpaint", "--images", tmp_path / picture, *masks, "--draws", "1")
        seen_BHW = np.load(tmp_path / "inpaint.npz")["seen"]
        assert not seen_BHW[0, :16].any()
        assert seen_BHW[0, 16:].all()


def test_an_array_of_two_meanings_is_refused_and_of_one_said(called, tmp_path, caplog):
    array = np.random.default_rng(0).random((3, 32, 32))
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=r"x.npy: shape \(3, 32, 32\) can be 3 grey images or 1 colour image"):
        called("reconstruct", "--images", tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", array[None])
    called("reconstruct", "--images", tmp_path / "x.npy")
    assert "x.npy: taken as 1 colour image (N, C, H, W) of float64, 1 is white" in caplog.text


def test_dropped_pixels_are_said(called, tmp_path, capsys):
    mask = np.full((32, 32), 255, np.uint8)
    mask[20:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ("inpaint", "--test", "2", "--mask", tmp_path / "mask.png", "--draws", "1")
    called(*arguments)
    assert "256 known pixels lie in partly known patches" in capsys.readouterr().out
    called(*arguments, "--observed", "any")
    assert "partly known" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("generate", "--model", "nowhere"), "holds no run, no checkpoint and no export"),
        (("reconstruct",), "Give --images PATH"),
        (("reconstruct", "--test", "2", "--images", "x.png"), "give one of them"),
        (("reconstruct", "--test", "99999"), "360 are there"),
        (("reconstruct", "--images", "nowhere.png"), "does not exist"),
        (("reconstruct", "--test", "2", "--hide", "half"), "needs whole images"),
        (("decode", "--codes", "README.md"), "holds no codes"),
        (("interpolate", "--test", "1"), "give two"),
        (("vary-z", "--test", "2", "--dimensions", "99"), "0 to 31"),
        (("generate", "--device", "abacus"), "set --device"),
        (("generate", "--device", "meta"), "set --device"),
        (("generate", "--device", "mps"), "set --device"),
        (("generate", "--out", "README.md"), "choose another --out"),
    ],
)
def test_mistakes(called, arguments, cause):
    with pytest.raises(UserError, match=cause) as refusal:
        called(*arguments)
    assert "\n" not in str(refusal.value)


def test_a_mistake_is_one_line_and_exit_code_2(start, digits_run):
    command = ("python", "launch/sample.py", "reconstruct", "--model", digits_run)
    done = start(*command, "--images", "no\nwhere\x1b[31m", cold=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert r"no\nwhere\x1b[31m does not exist" in done.stderr


def test_an_export_never_lands_in_a_run(start, digits_run):
    done = start("python", "launch/export.py", "--model", digits_run, "--out", digits_run, cold=True)
    assert done.returncode == 2
    assert "is a run or a checkpoint" in done.stderr
