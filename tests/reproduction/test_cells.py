"""Grids and cells: what a grid is made of, what a cell says, and which cells are refused."""

import json

import pytest
import yaml

from data.errors import UserError
from launch.commands.machine import machine
from reproduction import cell as cells
from reproduction.cell import Cell, config_checksum, name_of, path_of, read_cell, write_cell
from reproduction.grid import load_grid
from reproduction.work import Work
from trainer.config import load_config


def write_grid(folder, config, **grid):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"run_dir": str(folder / "runs"), **grid}, sort_keys=False))
    (folder / "one.yaml").write_text(config.read_text())
    return path


def made(config, **changed) -> Cell:
    """A cell of a run that nobody made."""
    of = {"name": name_of(config), "config_checksum": config_checksum(config), "recipe_version": cells.RECIPE_VERSION}
    of |= {"data_checksum": "a"}
    of |= {"source": "digits", "size": (2, 16, 4), "method": config.method, "mask_tokens": config.model.mask_tokens}
    of |= {"seed": config.seed, "images": 96, "images_per_epoch": 1437, "batch_size": 16, "parameters": 100}
    of |= {
        "flops_per_image": 1e6,
        "ways": {"device": "cpu", "precision": "fp32", "threads": 1},
        "seconds": {"training": 1.0, "measuring": 2.0},
    }
    return Cell(**{**of, **machine("torch"), "figures": {"elbos": {"joint_elbo": -1.5}}, **changed})


@pytest.fixture
def grid(tmp_path, tiny):
    return write_grid(tmp_path, tiny.path, configs=["one.yaml"], values={"method": ["vae", "biglearn_u"]})


def test_a_grid_is_its_parts_one_after_the_other(tmp_path, tiny):
    """Values name a run, settings do not; those of a part win over those of the grid, and a person's over all."""
    parts = [
        {"configs": ["one.yaml"], "values": {"seed": [0, 1], "method": ["vae", "biglearn_t"]}},
        {"configs": ["one.yaml"], "settings": {"seed": 7}, "values": {"objective.s_beta": ["[1, 2]"]}},
    ]
    path = write_grid(tmp_path, tiny.path, settings={"seed": 5, "train.batch_size": 32}, parts=parts)
    base, configs = load_grid(path, ["train.total_images=64"])
    assert base == tmp_path / "runs"
    assert [name_of(config) for config in configs] == [
        "one-seed=0-method=vae", "one-seed=0-method=biglearn_t", "one-seed=1-method=vae",
        "one-seed=1-method=biglearn_t", "one-objective.s_beta=1,2",
    ]  # fmt: skip
    assert [config.seed for config in configs] == [0, 0, 1, 1, 7]
    assert configs[4].objective.s_beta == (1, 2)
    assert {(config.train.batch_size, config.train.total_images) for config in configs} == {(32, 64)}


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"parts": [{"configs": ["one.yaml"], "valuse": {}}]}, "valuse"),
        ({"parts": []}, "parts"),
        ({"configs": []}, "configs"),
        ({"configs": ["one.yaml"], "values": {"seed": []}}, "without runs"),
        ({"configs": ["one.yaml"], "values": {"seeds": [1]}}, "seeds"),
        ({"configs": ["one.yaml", "one.yaml"]}, "one directory"),
        ({"configs": ["two.yaml"]}, "two.yaml"),
    ],
)
def test_a_grid_that_is_wrong_is_refused_in_one_line(tmp_path, tiny, grid, said):
    with pytest.raises(UserError, match=said) as met:
        load_grid(write_grid(tmp_path, tiny.path, **grid), [])
    assert "\n" not in str(met.value)


def test_a_cell_is_of_a_configuration_wherever_it_was_made(tiny):
    one = config_checksum(tiny())
    for same in ("run_dir=/elsewhere", "engine.name=deepspeed", "data.workers=0", "data.shards=/elsewhere"):
        assert config_checksum(tiny(same)) == one, same
    for other in (
        "seed=1",
        "train.batch_size=32",
        "objective.beta=0.02",
        "optimizer.learning_rate=0.1",
        "evaluate.images=5",
    ):
        assert config_checksum(tiny(other)) != one, other


def test_a_cell_comes_back_as_it_was_written(tiny, tmp_path):
    cell = made(tiny(), failed="a reason")
    write_cell(tmp_path / "cells" / "run.json", cell)
    assert read_cell(tmp_path / "cells" / "run.json", tiny()) == cell


def _changed(path, **changed):
    content = json.loads(path.read_text())
    content["cell"] |= changed
    path.write_text(json.dumps(content))


def test_cells_that_are_damaged_or_of_other_training_are_refused_by_name(grid, tmp_path, monkeypatch):
    _, (vae, u) = load_grid(grid, [])
    folder = tmp_path / "cells"
    path = path_of(folder, vae)
    write_cell(path, made(vae))
    assert [*Work.of(grid, folder, []).found()] == [name_of(vae)]
    for damage in (lambda: _changed(path, seed=3), lambda: path.write_text(path.read_text()[:-40])):
        damage()
        with pytest.raises(UserError, match=rf"{path.name} is damaged.*made again"):
            Work.of(grid, folder, [])
    write_cell(path, made(vae, config_checksum=config_checksum(u)))
    with pytest.raises(UserError, match=rf"{path.name} is of another configuration"):
        Work.of(grid, folder, [])
    write_cell(path, made(vae))
    with pytest.raises(UserError, match=rf"{path.name} is of another configuration"):
        Work.of(grid, folder, ["objective.beta=0.5"])
    monkeypatch.setattr(cells, "RECIPE_VERSION", cells.RECIPE_VERSION + 1)
    with pytest.raises(UserError, match=rf"{path.name} is of training that has changed"):
        Work.of(grid, folder, [])
    monkeypatch.undo()
    write_cell(folder / "stranger.json", made(vae))
    with pytest.raises(UserError, match=r"stranger.json is of no run"):
        Work.of(grid, folder, [])


def test_cells_of_another_machine_are_added_after_the_same_checks(grid, tmp_path):
    _, (vae, u) = load_grid(grid, [])
    here, there = tmp_path / "here", tmp_path / "there"
    write_cell(path_of(here, vae), made(vae))
    for config in (vae, u):
        write_cell(path_of(there, config), made(config, revision="theirs"))
    work = Work.of(grid, here, [])
    assert work.add(there) == [name_of(u)]
    assert [cell.revision for cell in work.found().values()] == [made(vae).revision, "theirs"]
    assert work.add(there) == []
    path_of(here, u).unlink()
    _changed(path_of(there, u), seed=9)
    with pytest.raises(UserError, match="damaged"):
        work.add(there)
    assert [*work.found()] == [name_of(vae)]
    with pytest.raises(UserError, match="no folder"):
        work.add(tmp_path / "nowhere")


def test_status_tells_what_is_left_and_how_long_it_takes(grid, tmp_path):
    _, (vae, u) = load_grid(grid, [])
    work = Work.of(grid, tmp_path / "cells", [])
    assert "0 of 2 cells" in work.status()
    assert "hours of one CPU core" in work.status()
    write_cell(path_of(work.cells, vae), made(vae, failed="4 steps in a row are not finite"))
    assert f"failed: {name_of(vae)}: 4 steps" in work.status()
    write_cell(path_of(work.cells, vae), made(vae, seconds={"training": 3600.0, "measuring": 0.0}))
    assert f"left: {name_of(u)}" in work.status()
    assert "hours by the cells that are made" in work.status()
    write_cell(path_of(work.cells, u), made(u))
    assert "takes" not in work.status()


def test_what_the_disk_refuses_is_one_line(tiny, tmp_path):
    (tmp_path / "cells").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written"):
        write_cell(tmp_path / "cells" / "run.json", made(tiny()))


def test_the_grids_that_are_shipped_are_whole(root):
    for path in sorted((root / "configs/reproduction").glob("*.yaml")):
        _, configs = load_grid(path, [])
        assert len({config_checksum(config) for config in configs}) == len(configs), path
    assert load_config(root / "configs/fashion_case1_short.yaml").data.source == "fashion_mnist"
