"""Trackers of experiments, Accelerate's, get what the logs get: TensorBoard, Weights & Biases, MLflow and Trackio.

Each works in a thread of its own, once a second: training waits for none of them, and none can end it.
"""

import importlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import torch

from data.errors import UserError
from data.files import make_folder

if TYPE_CHECKING:  # they take seconds to import
    from accelerate.tracking import GeneralTracker

log = logging.getLogger(__name__)

_PROJECT = "biglearn-vae"  # unless the tracker's own variable says something else
_TAG = "biglearn.run"  # by which a run of MLflow is found again
_PAUSE_S = 1.0  # after which a tracker gets the lines that have gathered
_MOST_WAITING = 1000  # lines
_MLFLOW_METRICS = 1000  # that it takes in one call
_CLOSE_S = 20.0  # that trackers get for the last lines: less than the patience of launchers
_PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny sqlalchemy alembic",
    "trackio": "trackio",
}


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    id: stays the same when the run goes on, and finds what a tracker has of it. folder: where trackers write, unless
    they have a server. step: after which the run goes on. hyperparameters: by dotted keys.
    """

    name: str
    id: str
    folder: Path
    step: int
    hyperparameters: dict

    @property
    def told(self) -> dict[str, bool | int | float | str]:
        """The hyperparameters as every tracker takes them: lists and none as JSON has them."""
        plain = bool | int | float | str
        return {k: v if isinstance(v, plain) else json.dumps(v) for k, v in self.hyperparameters.items()}


def require_trackers(names: Sequence[str], folder: Path) -> None:
    """UserError when one cannot be imported. Nothing is written. folder: that of the run's trackers."""
    modules = {"tensorboard": ["torch.utils.tensorboard"], "wandb": ["wandb"], "mlflow": ["mlflow"]}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        modules["mlflow"].append("mlflow.store.tracking.sqlalchemy_store")
    if "trackio" in names:
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve() / "trackio"))  # it reads it when it is imported
    for name in names:
        try:
            for module in modules.get(name, [name]):
                importlib.import_module(module)
        except Exception as error:  # a package that does not suit another one may raise anything
            raise UserError(
                f"metrics.trackers names {name}, which cannot be imported ({str(error) or type(error).__name__}): "
                f"pip install {_PACKAGES[name]}, or leave it out"
            ) from None


class Trackers:
    """A sink of steps and of evaluations, for the trackers of `names`, which are at work while it is entered.

    A tracker that fails costs a warning, and the run goes on without it.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun, device: torch.device):
        self._names, self._run, self._device = dict.fromkeys(names), run, device
        self._feeds: list[_Feed] = []

    def __enter__(self) -> "Trackers":
        if self._names:
            from accelerate import PartialState

            PartialState(cpu=self._device.type == "cpu")  # which Accelerate's trackers want, with any engine
            self._feeds = [_Feed(name, self._run) for name in self._names]
        return self

    def __call__(self, line: dict) -> None:
        for feed in self._feeds:
            feed.put(line)

    def __exit__(self, *_) -> None:
        for feed in self._feeds:
            feed.end()
        deadline = time.monotonic() + _CLOSE_S
        for feed in self._feeds:
            feed.join(max(0.0, deadline - time.monotonic()))


class _Feed:
    """The thread of a tracker, and the lines that wait for it."""

    def __init__(self, name: str, run: TrackedRun):
        self._name, self._run, self._is_behind = name, run, False
        self._lines: deque[dict] = deque(maxlen=_MOST_WAITING)  # the oldest go first, so that the last results stay
        self._ended = Event()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, line: dict) -> None:
        is_full = len(self._lines) == _MOST_WAITING
        if is_full and self._thread.is_alive() and not self._is_behind:
            self._is_behind = True
            log.warning("%s is slower than the training: it gets a part of the lines", self._name)
        self._lines.append(line)

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended.set()

    def join(self, patience_s: float) -> None:
        """Wait until the tracker has taken everything, and is closed."""
        self._thread.join(patience_s)
        if self._thread.is_alive():
            log.warning("%s does not answer: it has not taken the last lines within %g s", self._name, _CLOSE_S)

    def _work(self) -> None:
        try:
            make_folder(self._run.folder)
            with _OPEN[self._name](self._run) as (tracker, is_new):
                tracker.main_process_only = False  # else each call asks which process this is
                tracker.start()
                if is_new:
                    tracker.store_init_configuration(self._run.told)
                is_last = False
                while not is_last:
                    is_last = self._ended.wait(_PAUSE_S)
                    lines = [self._lines.popleft() for _ in range(len(self._lines))]
                    _LOG.get(self._name, _log)(tracker, lines)
                tracker.finish()
        except Exception as error:
            text = str(error).partition("\n")[0] or type(error).__name__
            log.warning("%s has failed (%s); training goes on without it", self._name, text)


# Each yields a tracker that has not started, and whether it has nothing of this run.
_Opened = Iterator[tuple["GeneralTracker", bool]]


@contextmanager
def _open_tensorboard(run: TrackedRun) -> _Opened:
    """TensorBoard then shows no step of an earlier start that is made again."""
    from accelerate.tracking import TensorBoardTracker

    is_new = not (run.folder / "tensorboard").exists()
    yield TensorBoardTracker("tensorboard", run.folder, purge_step=run.step + 1), is_new


@contextmanager
def _open_wandb(run: TrackedRun) -> _Opened:
    """The mode is that of WANDB_MODE, or of `wandb offline`. UserError where it would ask for a key."""
    import wandb
    from accelerate.tracking import WandBTracker

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
        raise UserError("there is no API key: `wandb login`, or set WANDB_MODE=offline")
    project = os.environ.get("WANDB_PROJECT", _PROJECT)
    kept = {"id": run.id, "name": run.name, "resume": "allow", "dir": run.folder}
    yield WandBTracker(project, **kept, settings=wandb.Settings(console="off")), True


@contextmanager
def _open_mlflow(run: TrackedRun) -> _Opened:
    """The run of the server, or of our own file, that has our tag; or a new one."""
    import mlflow
    from accelerate.tracking import MLflowTracker

    has_server, artifacts = "MLFLOW_TRACKING_URI" in os.environ, None
    if not has_server:
        folder = run.folder.resolve() / "mlflow"
        make_folder(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        artifacts = (folder / "artifacts").as_uri()
    try:
        tracker = MLflowTracker(_PROJECT, run_name=run.name)  # its variables stand before what it is given
        tracker.tags = {**(tracker.tags or {}), _TAG: run.id}
        if not mlflow.get_experiment_by_name(tracker.experiment_name):
            mlflow.create_experiment(tracker.experiment_name, artifacts)
        experiment = mlflow.get_experiment_by_name(tracker.experiment_name)
        tagged = f"tags.`{_TAG}` = '{run.id}'"
        found = mlflow.MlflowClient().search_runs([experiment.experiment_id], tagged, max_results=1)
        if found and not tracker.run_id:
            tracker.run_id = found[0].info.run_id
        yield tracker, not found
    finally:
        if not has_server:
            mlflow.set_tracking_uri(None)  # MLflow has written it into this process's environment


@contextmanager
def _open_trackio(run: TrackedRun) -> _Opened:
    from accelerate.tracking import TrackioTracker

    yield TrackioTracker(_PROJECT, name=run.name, resume="allow"), True


def _values(line: dict) -> dict[str, float]:
    """Those at the step of a line; one that was skipped has none for what was not finite."""
    return {name: value for name, value in line.items() if value is not None and name != "step"}


def _log(tracker: "GeneralTracker", lines: list[dict]) -> None:
    for line in lines:
        tracker.log(_values(line), step=line["step"])


def _log_mlflow(tracker: "GeneralTracker", lines: list[dict]) -> None:
    """All lines together: each call takes MLflow tens of milliseconds."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    metrics = [Metric(name, value, now, line["step"]) for line in lines for name, value in _values(line).items()]
    for first in range(0, len(metrics), _MLFLOW_METRICS):
        MlflowClient().log_batch(tracker.tracker.info.run_id, metrics[first : first + _MLFLOW_METRICS])


_LOG = {"mlflow": _log_mlflow}
_OPEN = {"tensorboard": _open_tensorboard, "wandb": _open_wandb, "mlflow": _open_mlflow, "trackio": _open_trackio}
