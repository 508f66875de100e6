"""launch/export.py: the folder that it writes is a model repository as it is."""

import io
import json
import re
import shutil

import pytest
import yaml
from PIL import Image

from biglearn_vae.capabilities import BigLearnVAE
from data.errors import UserError
from evaluation.assessment import FORMAT
from evaluation.report import _PARTS, ELBOS
from launch import export
from model.masks import STANDARD_MASKS
from tests.biglearn_vae.hub.models import assert_as_torch
from tests.programs import ROOT

RUN = ROOT / "tests/before/run"


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """exported(*arguments, model=RUN): the folder, and the card that it then has."""
    monkeypatch.setattr(export, "show_warnings", lambda rank: None)  # it would add a handler for good
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, model=RUN):
        assert export.main(["--model", str(model), "--out", str(tmp_path / "out"), *arguments]) == 0
        return tmp_path / "out", (tmp_path / "out/README.md").read_text()

    return call


def test_a_run_becomes_a_repository_with_its_figures_and_its_picture(exported, digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    (run / "reports/evaluation.json").unlink(missing_ok=True)  # of a test before
    folder, card = exported("--license", "mit", model=run)
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors", "preview.png"}
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    line = json.loads((digits_run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert f"| BigLearnELBO | {line['biglearn_elbo']:.4g} |" in card
    assert f"half seen | {line['inpainting_error']:.4g} |" in card
    assert (folder / "preview.png").read_bytes() == (digits_run / "samples/img-000000040000.png").read_bytes()


@pytest.mark.parametrize(("images", "of_its_data"), [(40_000, True), (39_000, True), (40_000, False)])
def test_the_figures_of_a_card_are_those_of_its_weights(exported, digits_run, tmp_path, images, of_its_data):
    """Of the full evaluation, where there is one; without one, and without a picture, of none."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    filling = [{"mask": mask, "way": "mean image", "images": 7, "error": 0.5} for mask in STANDARD_MASKS]
    report = dict.fromkeys(_PARTS) | {"format": FORMAT, "images": images, "bounds": [], "filling": filling}
    report |= {"elbos": dict.fromkeys(ELBOS, -1.25), "gaussian": {"joint_elbo": None, "log_density": None}}
    report |= {"latent": {"active_units": 3, "dimensions": 32, "images": 9}}
    checksum = BigLearnVAE.load(run).description.data_checksum
    report["data_checksum"] = checksum if of_its_data else "of others"
    (run / "reports/evaluation.json").write_text(json.dumps(report))
    line = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    (run / "evaluations.jsonl").write_text(json.dumps(line | {"images": 39_000}) + "\n")
    (run / "samples/img-000000040000.png").unlink()
    folder, card = exported(model=run)
    assert ("active latent units" in card) == ("-1.25" in card) == (images == 40_000 and of_its_data)
    assert ("These weights were not evaluated." in card) == (images != 40_000 or not of_its_data)
    assert "![Test images" in card
    assert Image.open(folder / "preview.png").height > 600


def test_without_the_data_the_picture_shows_samples(exported):
    folder, card = exported()
    assert "![Samples](preview.png)" in card
    assert Image.open(io.BytesIO((folder / "preview.png").read_bytes())).height < 300


def test_onnx_is_described_and_leaves_with_the_weights_that_it_is_of(exported, monkeypatch):
    folder, card = exported("--onnx")
    assert "onnx" in yaml.safe_load(card.split("---\n")[1])["tags"]
    monkeypatch.chdir(folder)
    found: dict = {}
    for example in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(example, found)
    assert found["completed"].shape == (2, 16, 16, 3)
    files = {name: (folder / name).read_bytes() for name in ("encoder.onnx", "decoder.onnx")}
    assert_as_torch(BigLearnVAE.load(folder), files)
    assert not any(str(ROOT).encode() in content for content in files.values())
    _, card = exported()
    assert not {"encoder.onnx", "decoder.onnx"} & {path.name for path in folder.iterdir()}
    assert "onnx" not in card


def test_nothing_is_written_beside_what_a_person_edited(exported, capsys):
    folder, card = exported()
    (folder / "README.md").write_text(card.replace("Limits", "My limits"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="README.md is no export's, or was edited since"):
        exported("--license", "mit")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(SystemExit):
        exported("--license", "mit\nlicense: other")
    assert "is no license identifier" in capsys.readouterr().err
