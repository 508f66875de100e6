"""Trackers of experiments get what the logs get, and hold up nobody."""

import json
import os
import resource
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
import yaml

from data.errors import UserError
from tests.tiny import TINY
from trainer.config import load_config
from trainer.engines.accelerate_engine import AccelerateEngine
from trainer.loop import train
from trainer.metrics import trackers
from trainer.metrics.json_lines import read_lines
from trainer.metrics.trackers import TrackedRun, Trackers
from trainer.ranks.stop import StopRequest
from trainer.run_directory import RunDirectory

VARIABLES = [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_", "TRACKIO_"))]


@pytest.fixture(autouse=True, scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits_shards, world) -> RunDirectory:
    """A run of 6 steps that lost the last 2 of its first 4 and made them again."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    settings = [f"data.shards={digits_shards}", f"run_dir={folder / 'run'}", "checkpoint.every_images=32"]
    settings += ["evaluate.every_images=32", "metrics.trackers=[tensorboard, mlflow, wandb]"]
    config = load_config(folder / "tiny.yaml", [*settings, "train.max_steps=4"])
    run = RunDirectory(config.run_dir)
    train(config, world, run, resume=False, stop=StopRequest())
    shutil.rmtree(run.newest_checkpoint())
    again = RunDirectory(config.run_dir)
    run._lock.close()
    train(load_config(folder / "tiny.yaml", settings), world, again, resume=True, stop=StopRequest())
    return again


def series(run: RunDirectory, name: str) -> list[tuple[int, float]]:
    """What the logs hold of a number: steps and values."""
    lines = [*read_lines(run.metrics), *read_lines(run.evaluations)]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_tensorboard_has_each_step_once(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.trackers / "tensorboard"))
    events.Reload()
    for name in ("loss", "kl", "learning_rate", "biglearn_elbo", "inpainting_error"):
        steps, values = zip(*series(run, name), strict=True)
        assert tuple(event.step for event in events.Scalars(name)) == steps
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values)
    (hyperparameters,) = run.trackers.glob("tensorboard/*/hparams.yml")  # of the first start alone
    assert yaml.safe_load(hyperparameters.read_text())["model.latent_dim"] == 4


def test_mlflow_has_one_run_and_both_values_of_what_was_made_again(run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.trackers / 'mlflow/mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "biglearn-vae"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (run.name, "FINISHED")
    assert found.data.params["model.latent_dim"] == "4"
    for name, again in (("loss", {3, 4}), ("biglearn_elbo", {4})):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]
        assert sorted(set(history)) == series(run, name)
        assert {step for step, _ in history if [s for s, _ in history].count(step) > 1} == again


def test_wandb_goes_on_with_the_same_run(run):
    from wandb.proto.wandb_internal_pb2 import Record

    starts = sorted(run.trackers.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in starts] == [f"run-{run.record().id}.wandb"] * 2
    losses, elbos, hyperparameters = [], [], {}
    for record in map(Record.FromString, (content for path in starts for content in records(path))):
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        losses += [(row["_step"], row["loss"])] if "loss" in row else []
        elbos += [(row["_step"], row["biglearn_elbo"])] if "biglearn_elbo" in row else []
        hyperparameters |= {item.key or item.nested_key[0]: item.value_json for item in record.config.update}
    assert [step for step, _ in losses] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert sorted(set(losses)) == series(run, "loss")
    assert sorted(set(elbos)) == series(run, "biglearn_elbo")
    assert hyperparameters["model.latent_dim"] == "4"


def records(path: Path) -> Iterator[bytes]:
    """Those of a log of LevelDB with a header of 7 bytes, as W&B writes it."""
    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 2**15 - position % 2**15 < 7:  # no record begins that near to the end of a block
            position += 2**15 - position % 2**15
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_a_run_that_breaks_off_leaves_what_it_measured(tiny, world, monkeypatch):
    def break_off(self, batches, plan, rates):
        steps.append(rates)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self, batches, plan, rates)

    steps, step = [], AccelerateEngine.step
    monkeypatch.setattr(AccelerateEngine, "step", break_off)
    monkeypatch.setattr(trackers, "_PAUSE_S", 100.0)
    config = tiny("metrics.trackers=[tensorboard]", "metrics.steps_late=0", "evaluate.images=4")
    run = RunDirectory(config.run_dir)
    with pytest.raises(KeyboardInterrupt):
        train(config, world, run, resume=False, stop=StopRequest())
    assert steps_in(run.trackers) == [1, 2, 3]


def steps_in(folder: Path, name: str = "loss") -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def test_a_tracker_that_fails_costs_one_warning(tiny, world, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///proc/none")
    config = tiny("metrics.trackers=[mlflow, tensorboard]", "evaluate.images=4")
    run = RunDirectory(config.run_dir)
    train(config, world, run, resume=False, stop=StopRequest())
    (warning,) = [text for text in caplog.messages if "mlflow" in text]
    assert warning.startswith("mlflow has failed (")
    assert steps_in(run.trackers) == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def tracked(tmp_path):
    return TrackedRun("digits", "0123", tmp_path / "trackers", 0, {"train.batch_size": 16, "seeds": [1], "none": None})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_a_tracker_and_nothing_else(tracked, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "_PAUSE_S", 0.01)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Trackers(["tensorboard"], tracked, torch.device("cpu")) as sink:
        try:
            (thread,) = (feed._thread for feed in sink._feeds)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # the kernel refuses to let a file grow
            for step in range(1, 10_000):
                sink({"step": step, "loss": 1.0})
                thread.join(0.01)
                if not thread.is_alive():
                    break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sink({"step": step + 1, "loss": 1.0})
    assert [text for text in caplog.messages if "tensorboard" in text] == [
        "tensorboard has failed ([Errno 27] File too large); training goes on without it"
    ]


def test_nobody_waits_for_a_tracker_that_hangs(tracked, caplog, monkeypatch):
    """A server that does not answer."""
    answers, seen = Event(), []

    @contextmanager
    def open_slow(run):
        tracker = SimpleNamespace(start=answers.wait, finish=lambda: None)
        tracker.log = lambda values, step: seen.append((step, values))
        yield tracker, False

    monkeypatch.setitem(trackers._OPEN, "wandb", open_slow)
    monkeypatch.setattr(trackers, "_CLOSE_S", 0.1)
    most = trackers._MOST_WAITING
    with Trackers(["wandb"], tracked, torch.device("cpu")) as sink:
        for step in range(1, most + 10):
            sink({"step": step, "loss": None if step == 10 else 1.0, "images": step})
    assert caplog.messages == [
        "wandb is slower than the training: it gets a part of the lines",
        "wandb does not answer: it has not taken the last lines within 0.1 s",
    ]
    answers.set()
    sink._feeds[0]._thread.join()
    assert [step for step, _ in seen] == [*range(10, most + 10)], "the last ones are there"
    assert seen[:2] == [(10, {"images": 10}), (11, {"loss": 1.0, "images": 11})]  # of a step that was skipped


def test_a_tracker_that_is_not_there_is_said_before_anything_is_made(tiny, world, monkeypatch):
    config = tiny("metrics.trackers=[tensorboard, wandb]")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="names wandb, which cannot be imported .*: pip install wandb, or leave it out"):
        train(config, world, RunDirectory(config.run_dir), resume=False, stop=StopRequest())
    assert not Path(config.run_dir).exists()


def test_a_dry_run_tells_whether_trackers_are_there_and_writes_nothing(start, tiny, tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError('no core')")
    known = [f"data.shards={tmp_path / 'shards'}", f"run_dir={tmp_path / 'run'}", "metrics.trackers=[wandb]"]
    command = ["python", "launch/train.py", "--config", tiny.path, "--dry-run", *known]
    done = start(*command, cold=True, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: metrics.trackers names wandb, which cannot be imported (no core): pip install wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not find_spec("trackio"), reason="trackio is not installed")
def test_trackio_gets_the_steps(tiny, world, monkeypatch):
    config = tiny("metrics.trackers=[trackio]", "evaluate.images=4")
    run = RunDirectory(config.run_dir)
    train(config, world, run, resume=False, stop=StopRequest())
    import trackio

    (found,) = trackio.Api().runs("biglearn-vae")
    assert found.name == run.name
    assert (run.trackers / "trackio/biglearn-vae.db").exists()
