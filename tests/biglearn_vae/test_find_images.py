"""The data of a run or an export, found from where they were meant."""

import json
import shutil

import pytest

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.find_images import find_data, open_images
from data.errors import UserError
from data.prepare import prepare
from data.read.config import DataConfig
from data.read.index import read_index

SHARDS = "datasets/digits"


@pytest.fixture
def moved(digits_shards, tmp_path, monkeypatch):
    """moved(place, started_in): a run in its own folder whose relative shards lie in this place; work is elsewhere."""
    for name in ("elsewhere", "project", "copied/run"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")

    def make(place: str, started_in: str = "gone"):
        shutil.copytree(digits_shards, tmp_path / place / SHARDS)
        run = tmp_path / "copied/run"
        (run / "config.yaml").touch()
        (run / "run.json").write_text(json.dumps({"id": "1", "started_in": str(tmp_path / started_in)}))
        return run

    return make


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("elsewhere", SHARDS),
        ("project", f"{{}}/project/{SHARDS}"),
        ("copied/run", f"{{}}/copied/run/{SHARDS}"),
        ("copied", f"{{}}/copied/{SHARDS}"),
    ],
)
def test_a_relative_folder_is_found_from_where_it_was_meant(moved, tmp_path, place, expected):
    run = moved(place, started_in="project")
    checkpoint = run / "checkpoints/img-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    for path in (run, checkpoint):
        assert find_data(DataConfig(source="digits"), path).shards == expected.format(tmp_path)


def test_the_first_place_counts(moved, tmp_path):
    run = moved("project", "project")
    shutil.copytree(tmp_path / "project", tmp_path / "copied", dirs_exist_ok=True)
    assert find_data(DataConfig(source="digits"), run).shards == str(tmp_path / "project" / SHARDS)


def test_codes_and_the_run_of_their_patchae_are_found_as_well(moved, tmp_path):
    run = moved("project", "project")
    for name in ("datasets/digits_latents", "runs/first"):
        (tmp_path / "project" / name).mkdir(parents=True)
    data = DataConfig(source="digits", code_dim=512, patch_size=16, patch_autoencoder="runs/first")
    found = find_data(data, run)
    assert found.latents == str(tmp_path / "project/datasets/digits_latents")
    assert found.patch_autoencoder == str(tmp_path / "project/runs/first")
    absent = data.model_copy(update={"latents": "nowhere", "patch_autoencoder": "nowhere"})
    assert find_data(absent, run).patch_autoencoder == "nowhere"
    with pytest.raises(UserError, match=r"nowhere does not exist here.* with data\.latents=DIR$"):
        find_data(absent, run, needed=("latents",), option="data.{}=DIR")


def test_what_is_nowhere_names_the_places_and_the_option(moved, tmp_path):
    run = moved("unknown")
    with pytest.raises(UserError) as refused:
        find_data(DataConfig(source="digits"), run)
    places = ", ".join(map(str, (tmp_path / "gone", run, run.parent, tmp_path)))
    assert f"{SHARDS} does not exist here, nor in {places}, " in str(refused.value)
    assert "with --shards DIR, or write the shards with `python launch/prepare.py digits --out" in str(refused.value)
    with pytest.raises(UserError, match="^/nowhere does not exist: say"):
        find_data(DataConfig(source="digits", shards="/nowhere"), run)
    assert find_data(DataConfig(source="digits"), run, "theirs").shards == "theirs"


def test_other_images_are_refused_unless_a_person_names_them(digits_run, digits_shards, tmp_path, caplog):
    description = BigLearnVAE.load(digits_run).description
    assert description.data_checksum == read_index(digits_shards).checksum
    assert open_images(description, digits_run)[1] == read_index(digits_shards)
    others = description.model_copy(update={"data_checksum": "0" * 64})
    with pytest.raises(UserError, match=r"holds other images than those that the model was trained with: .*--shards"):
        open_images(others, digits_run)
    assert not caplog.records
    data, _ = open_images(others, digits_run, str(digits_shards))
    assert data.shards == str(digits_shards)
    assert "holds other images" in caplog.text
    prepare("digits", tmp_path / "small", image_size=16, progress=False)
    with pytest.raises(UserError, match="holds images of 16 pixels"):
        open_images(description, digits_run, str(tmp_path / "small"))
