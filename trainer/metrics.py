"""What a run measures: one registry of names, one recorder, sinks that receive each step some steps late."""

import json
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from tqdm import tqdm

from trainer.files import write_aside


@dataclass(frozen=True)
class Metric:
    """One measured quantity; `unit` is a base unit."""

    name: str
    unit: str
    help: str


REGISTRY = {
    metric.name: metric
    for metric in (
        Metric("step", "steps", "optimizer steps made"),
        Metric("images", "images", "training images seen"),
        Metric("loss", "nats", "what is minimised: minus the ELBO (patch_ae: squared error a pixel)"),
        Metric("elbo", "nats", "eq. (7): reconstruction - beta * kl, mean over the batch"),
        Metric("reconstruction", "nats", "-½ SSE over the pixels of x_T, mean over the batch"),
        Metric("kl", "nats", "KL of the posterior from the prior, mean over the batch"),
        Metric("elbo_joint", "nats", "elbo of the groups with S empty and T everything"),
        Metric("elbo_marginal", "nats", "elbo of the other groups with S empty"),
        Metric("elbo_conditional", "nats", "elbo of the groups with S not empty"),
        Metric("gradient_norm", "1", "L2 norm of the gradient before clipping"),
        Metric("learning_rate", "1", "learning rate of the step"),
        Metric("images_per_second", "images/s", "training speed between this line and the last"),
        Metric("seconds_data", "s", "time this rank waited for data since the last line"),
        Metric("seconds_step", "s", "time in steps since the last line"),
        Metric("seconds_evaluation", "s", "time in evaluation and pictures since the last line"),
        Metric("seconds_checkpoint", "s", "time in checkpoints since the last line"),
    )
}


class MetricsConfig(BaseModel, extra="forbid", frozen=True):
    """Recording."""

    steps_late: int = Field(4, ge=0)  # terms are read from the device so many steps later: no step waits for them


class NonFiniteError(Exception):
    """A measured number is not finite any more; commands exit with code 3."""


def require_finite(line: dict) -> None:
    """NonFiniteError that names the first value of a line that is no finite number."""
    for name, value in line.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value} at step {line['step']}")


class Metrics:
    """Takes the terms of every step and hands them, read from the device some steps late, to every sink.

    A sink is a function of one dict: names of REGISTRY to numbers.
    """

    def __init__(self, config: MetricsConfig, images: int, sinks: list[Callable[[dict], None]]):
        self.steps_late, self.sinks = config.steps_late, sinks
        self._pending: deque[dict] = deque()
        self.training_seconds = 0.0  # wall time without evaluation and checkpoints
        self._seconds: Counter[str] = Counter()
        self._images, self._time = images, time.monotonic()

    @contextmanager
    def phase(self, name: str):
        """Time what happens inside as `seconds_<name>` of the next recorded step."""
        start = time.monotonic()
        yield
        self._seconds[f"seconds_{name}"] += time.monotonic() - start

    def record_step(self, step: int, images: int, terms: dict[str, Tensor], **values: float) -> None:
        """Take the terms of a step; they stay on the device for now."""
        now = time.monotonic()
        elsewhere = self._seconds["seconds_evaluation"] + self._seconds["seconds_checkpoint"]
        training_seconds = now - self._time - elsewhere
        self.training_seconds += training_seconds
        values["images_per_second"] = (images - self._images) / max(training_seconds, 1e-9)
        self._images, self._time = images, now
        self._pending.append({"step": step, "images": images, **terms, **values, **self._seconds})
        self._seconds.clear()
        self._drain(self.steps_late)

    def flush(self) -> None:
        """Hand on everything that is pending."""
        self._drain(0)

    def _drain(self, keep: int) -> None:
        while len(self._pending) > keep:
            line = self._pending.popleft()
            unknown = line.keys() - REGISTRY.keys()
            assert not unknown, f"not in the registry: {unknown}"
            tensors = [name for name, value in line.items() if isinstance(value, Tensor)]
            numbers = torch.stack([line[name] for name in tensors]).tolist()  # one transfer for all terms
            line.update(zip(tensors, numbers, strict=True))
            require_finite(line)
            for sink in self.sinks:
                sink(line)


class JsonLines:
    """A sink and a log: one JSON object a line. Lines after `images`, of steps that are made again, are dropped."""

    def __init__(self, path: Path, images: int):
        kept = [line for line in _whole_lines(path) if json.loads(line)["images"] <= images]
        write_aside(path, "".join(kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, line: dict) -> None:
        rounded = {k: float(f"{v:.6g}") if k.startswith(_ROUNDED) else v for k, v in line.items()}
        self._file.write(json.dumps(rounded, allow_nan=False) + "\n")
        self._file.flush()


_ROUNDED = ("seconds_", "images_per_second")  # losses keep every digit


def _whole_lines(path: Path) -> list[str]:
    """The lines of a log, without a last one that a killed process left unfinished."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


_PAUSE = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file gets a line now and then
_INTERVALS = {"mininterval": _PAUSE, "maxinterval": _PAUSE, "smoothing": 0.1}


def progress(portions: Sequence, name: str, *, shown: bool) -> Iterable:
    """`portions` with a bar of its own, which appears when they take more than a few seconds and then goes."""
    return tqdm(portions, desc=name, delay=3, leave=False, disable=not shown, **_INTERVALS)


class ProgressBar:
    """A sink: images done, images/s, time left, and the ELBO, on standard error."""

    def __init__(self, images: int, total_images: int):
        self._bar = tqdm(initial=images, total=total_images, unit="img", unit_scale=True, desc="train", **_INTERVALS)

    def __call__(self, line: dict) -> None:
        shown = {name: f"{line[name]:.2f}" for name in ("elbo", "kl") if name in line} or {
            "loss": f"{line['loss']:.4g}"
        }
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(line["images"] - self._bar.n)

    def close(self) -> None:
        self._bar.close()
