"""Cells that are made: trained, measured, interrupted, failed, and taken up again."""

import json
from dataclasses import replace
from functools import partialmethod

import pytest
import torch
import yaml

from biglearn_vae.capabilities import BigLearnVAE
from data.errors import UserError
from launch.commands.machine import machine
from reproduction import measures
from reproduction.cell import name_of
from reproduction.work import Work, _alone
from tests.reproduction.test_cells import write_grid
from trainer.metrics.json_lines import read_lines
from trainer.ranks.stop import StopRequest
from trainer.run_directory import RunDirectory
from trainer.tasks.cost import Cost

SMALL = {"images": 12, "bound_images": 4, "bound_samples": 2, "filling_images": 6, "filling_draws": 2}
SMALL |= {"probe_images": 60, "probe_test_images": 40, "gaussian_images": 60, "references": 30}


@pytest.fixture
def work(tmp_path, tiny, digits_shards, monkeypatch):
    """Two runs of a few steps, looked at on few images."""
    monkeypatch.setattr(measures, "ON_CPU", replace(measures.ON_CPU, **SMALL))
    for counts in (measures.JUDGED_IMAGES, measures.CHAIN_IMAGES, measures._FILLED_BY_CHAINS):
        monkeypatch.setitem(counts, "cpu", 4)
    monkeypatch.setattr(measures, "measure_cost", lambda *_: Cost(1.0, 1.0, 1e6))  # seconds each, and tested elsewhere
    monkeypatch.setattr("evaluation.sharpness._SEEN_IMAGES", 128)
    monkeypatch.setattr("evaluation.chains.STEPS", (10, 20))
    monkeypatch.setattr("evaluation.assessment.PROBE_RATIOS", (0.1, 1.0))
    monkeypatch.setattr(BigLearnVAE, "pseudo_gibbs", partialmethod(BigLearnVAE.pseudo_gibbs, burn_in=1, steps=1))
    settings = {"data.shards": str(digits_shards), "evaluate.every_images": 48, "checkpoint.every_images": 16}
    grid = write_grid(
        tmp_path, tiny.path, configs=["one.yaml"], values={"method": ["vae", "biglearn_u"]}, settings=settings
    )
    return Work.of(grid, tmp_path / "cells", [])


@pytest.fixture
def unmeasured(monkeypatch):
    """Trainings alone: a cell has the figures of the run's own last evaluation."""
    monkeypatch.setattr(measures, "_figures", lambda _, run, *__: {"elbos": read_lines(run.evaluations)[-1]})


def make(work, world, stop=None):
    return dict(work.make(world, stop or StopRequest(), machine("torch")))


def test_cells_are_made_one_after_the_other_and_measure_what_claims_ask_for(work, world):
    made = make(work, world)
    assert [*made] == [name_of(config) for config in work.configs]
    assert work.found() == made
    assert make(work, world) == {}  # nothing is made again
    for name, cell in made.items():
        figures = cell.figures
        assert {"elbos", "bounds", "latent", "filling", "probe", "times", "sharpness", "curve", "epochs"} <= {*figures}
        assert figures["extent"]["images"] == 12
        assert [line["images"] for line in figures["curve"]] == [48, 96]
        assert 0 < figures["curve"][0]["seconds"] < figures["curve"][1]["seconds"] <= cell.seconds["training"] * 1.01
        assert cell.images == 96
        assert cell.images_per_epoch == 1437
        assert len({row["s_ratio"] for row in figures["probe"]}) == 2
        is_vae = "vae" in name
        ways = {row["way"] for row in figures["times"]}
        assert ways == ({"pseudo-Gibbs", "Metropolis-within-Gibbs"} if is_vae else {"in-painting"})
        assert len({row["of"] for row in figures["bounds"]}) == (1 if is_vae else 5)


@pytest.mark.usefixtures("unmeasured")
def test_a_cell_that_is_stopped_goes_on_where_it_was(work, world):
    work, stop = replace(work, configs=work.configs[1:]), StopRequest()
    stop.signal = 2
    ((name, cell),) = make(work, world, stop).items()
    assert cell is None
    assert work.found() == {}
    run = RunDirectory(work.configs[0].run_dir)
    assert run.newest_checkpoint() or not run.lines()  # nothing that was trained is lost
    assert make(work, world)[name].images == 96


@pytest.mark.usefixtures("unmeasured")
def test_a_cell_that_another_process_makes_is_left_to_it(work, world):
    with _alone(RunDirectory(work.configs[0].run_dir).path) as is_free:
        assert is_free
        assert [*make(work, world)] == [name_of(work.configs[1])]


def test_a_training_that_ends_in_nan_is_a_cell_that_says_so(work, world, tmp_path):
    grid = yaml.safe_load(work.path.read_text())
    grid["settings"] |= {"optimizer.learning_rate": 1e30, "train.max_skipped_steps": 2}
    grid["values"] = {"method": ["biglearn_u"]}
    work.path.write_text(yaml.safe_dump(grid))
    failing = Work.of(work.path, tmp_path / "failing", [])
    ((_, cell),) = make(failing, world).items()
    assert "2 steps in a row are not finite" in cell.failed
    assert cell.figures == {}
    assert cell.failed in failing.status()


@pytest.mark.usefixtures("unmeasured")
def test_a_run_of_another_recipe_is_not_taken_for_this_one(work, world, tmp_path):
    """Learning rates and lengths are no part of what a resume compares; a cell of such a run would be another's."""
    short = replace(work, configs=work.configs[1:])
    ((name, cell),) = make(short, world).items()
    for changed in ("optimizer.learning_rate=0.5", "train.total_images=64"):
        other = Work.of(work.path, tmp_path / "other", [changed])
        with pytest.raises(UserError, match=rf"{name} was trained by another recipe"):
            make(replace(other, configs=other.configs[1:]), world)
    (RunDirectory(short.configs[0].run_dir).path / "cell.json").unlink()  # as launch/train.py leaves it
    again = make(replace(short, cells=tmp_path / "again"), world)[name]
    assert again.figures["elbos"] == cell.figures["elbos"]
    assert (cell.ways["threads"], again.ways["threads"]) == (torch.get_num_threads(), 0)


def test_figures_that_are_no_numbers_are_a_failed_cell(work, world, monkeypatch):
    monkeypatch.setattr(measures, "_figures", lambda *_: {"times": [{"error": float("nan")}]})
    made = make(replace(work, configs=work.configs[1:]), world)
    assert [cell.failed for cell in made.values()] == ["figures.times.0.error is nan"]
    assert work.found() == made


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_made(work, world, tmp_path):
    (tmp_path / "cells").write_text("no folder")
    with pytest.raises(UserError, match="cells cannot be written"):
        make(work, world)


def test_images_that_are_absent_are_said_before_anything_is_made(work, world, tmp_path):
    absent = Work.of(work.path, tmp_path / "cells", ["data.source=mnist", f"data.shards={tmp_path / 'none'}"])
    with pytest.raises(UserError, match="none"):
        make(absent, world)


def test_the_command_makes_a_grid_and_says_what_is_there(start, tiny, tmp_path, digits_shards):
    """In processes: a grid without a cell, one that is wrong, a check of the page that is shipped."""
    grid = write_grid(tmp_path, tiny.path, configs=["one.yaml"], settings={"data.shards": str(digits_shards)})
    called = ("python", "launch/reproduce.py", "--grid", str(grid), "--cells", str(tmp_path / "cells"))
    status = start(*called, "--status")
    assert (status.returncode, "0 of 1 cells" in status.stdout) == (0, True), status.stderr
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "one.json").write_text(json.dumps({}))
    refused = start(*called)
    assert refused.returncode == 2
    assert "one.json is damaged" in refused.stderr
    assert refused.stderr.count("\n") == 1
    check = start("python", "launch/reproduce.py", "--check")
    assert check.returncode == 0, check.stderr
