"""A run with relative paths that was copied, used from a folder that is neither its own nor that of its training."""

import shutil

import pytest

COMMANDS = {
    "sample": ("sample.py", "reconstruct", "--test", "4", "--model"),
    "evaluate": (
        "evaluate.py", "--images", "4", "--bound-images", "2", "--bound-samples", "2", "--inpainting-images", "2",
        "--draws", "1", "--probe-images", "20", "--out", "out", "--run",
    ),
    "figures": ("figures.py", "--figures", "9", "13", "--out", "out", "--against", "run", "--run"),
    "replay": ("replay.py", "--step", "1", "--run"),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(start, root, tiny_file, digits_shards, tmp_path_factory):
    """A folder with datasets/digits and a run that was trained in it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(digits_shards, folder / "datasets/digits")
    paths = ("data.shards=datasets/digits", "data.latents=datasets/digits_latents", "run_dir=runs/tiny")
    done = start("python", root / "launch/train.py", "--config", tiny_file, *paths, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def used(start, root, project, tmp_path):
    """used(name, *more): the command of this name on the copy of the run, from an empty folder."""
    run = shutil.copytree(project / "runs/tiny", tmp_path / "copied/run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/run").symlink_to(run)

    def use(name: str, *more):
        script, *arguments = COMMANDS[name]
        return start("python", root / "launch" / script, *arguments, run, *more, folder=tmp_path / "elsewhere")

    return use


@pytest.mark.parametrize("name", COMMANDS)
def test_its_data_are_found_where_it_was_trained(used, name):
    done = used(name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_says_where_they_are(used, project, digits_shards, tmp_path, name):
    (project / "datasets").rename(tmp_path / "away")
    try:
        option = "data.shards=" if name == "replay" else "--shards "
        done = used(name)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert f"datasets/digits does not exist here, nor in {project}, {tmp_path / 'copied/run'}, " in done.stderr
        assert f"say where it is now with {option}DIR" in done.stderr
        done = used(name, *f"{option}{digits_shards}".split())
        assert done.returncode == 0, done.stderr
    finally:
        (tmp_path / "away").rename(project / "datasets")
