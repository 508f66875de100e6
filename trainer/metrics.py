"""What a run measures: one registry of names, one recorder, sinks that receive each step some steps late."""

import json
import logging
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from data.errors import NonFiniteError
from data.files import write_aside
from data.section import Section

log = logging.getLogger(__name__)


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
        Metric("learning_rate", "1", "AdamW's learning rate of the step"),
        Metric("beta", "1", "weight of the KL in the step"),
        Metric("skipped_steps", "steps", "steps that changed nothing because a term or the gradient was not finite"),
        Metric("damaged_images", "images", "damaged training images met by the rank that met most"),
        Metric("world_size", "ranks", "ranks that made the step"),
        Metric("images_per_second", "images/s", "training speed between this line and the last"),
        Metric("seconds_data", "s", "time this rank waited for data since the last line"),
        Metric("seconds_step", "s", "time in steps since the last line"),
        Metric("seconds_forward", "s", "of steps that are timed (metrics.phases_every_steps): forward"),
        Metric("seconds_backward", "s", "of these steps: backward, and what the ranks exchange in it"),
        Metric("seconds_optimizer", "s", "of these steps: the rest"),
        Metric("seconds_evaluation", "s", "time in evaluation and pictures since the last line"),
        Metric("seconds_checkpoint", "s", "time in checkpoints since the last line"),
    )
}


class MetricsConfig(Section):
    """Recording."""

    steps_late: int = Field(4, ge=0)  # terms are read from the device so many steps later: no step waits for them
    phases_every_steps: int = Field(100, ge=0)  # so often forward, backward and optimizer are timed; 0: never
    port: int | None = Field(0, ge=0, lt=2**16)  # for Prometheus, plus the local rank; 0: any; null: no exporter
    host: str = "127.0.0.1"  # the address that it listens on; "0.0.0.0" opens it to other machines
    targets: str = "runs/targets"  # the folder where each rank says where it is to be found
    pushgateway: str | None = None  # URL that gets the last numbers of a finished run
    peak_flops: float | None = Field(None, gt=0)  # of a device; null: of the GPUs whose data sheets we know


def require_finite(line: dict) -> None:
    """NonFiniteError that names the first value of a line that is no finite number."""
    for name, value in line.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value} at step {line['step']}")


class Metrics:
    """Takes the terms of every step and hands them, read from the device some steps late, to every sink.

    A sink is a function of one dict: names of REGISTRY to numbers, None for what is not finite in a skipped step.

    skipped_steps: of the whole run. last_skipped: the lines of the skipped steps since the last that was not, with
    their numbers as they were. All ranks see the same.
    """

    def __init__(self, config: MetricsConfig, images: int, sinks: list[Callable[[dict], None]], skipped_steps: int = 0):
        self.steps_late, self.sinks = config.steps_late, sinks
        self.skipped_steps, self.last_skipped = skipped_steps, []
        self._pending: deque[tuple[dict, list[str], Callable[[], list[float]]]] = deque()
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
        """Take the terms of a step; their way to the host begins, and nobody waits for it yet."""
        now = time.monotonic()
        elsewhere = self._seconds["seconds_evaluation"] + self._seconds["seconds_checkpoint"]
        training_seconds = now - self._time - elsewhere
        self.training_seconds += training_seconds
        values["images_per_second"] = (images - self._images) / max(training_seconds, 1e-9)
        self._images, self._time = images, now
        line = {"step": step, "images": images, **dict.fromkeys(terms), **values, **self._seconds}
        self._pending.append((line, list(terms), _start_copy(torch.stack(list(terms.values())))))
        self._seconds.clear()
        self._drain(self.steps_late)

    def flush(self) -> None:
        """Hand on everything that is pending."""
        self._drain(0)

    def _drain(self, keep: int) -> None:
        while len(self._pending) > keep:
            line, names, read = self._pending.popleft()
            line.update(zip(names, read(), strict=True))
            if line.pop("skipped"):
                self.skipped_steps += 1
                self.last_skipped.append(dict(line))
                line = {name: value if math.isfinite(value) else None for name, value in line.items()}
            else:
                self.last_skipped.clear()
                require_finite(line)
            line["skipped_steps"] = self.skipped_steps
            unknown = line.keys() - REGISTRY.keys()
            assert not unknown, f"not in the registry: {unknown}"
            for sink in self.sinks:
                sink(line)


def _start_copy(values_N: Tensor) -> Callable[[], list[float]]:
    """Start to copy values to the host; what is returned waits for these alone, not for steps that were queued later.

    From now on whatever becomes of values_N on the device does not matter.
    """
    if values_N.device.type != "cuda":
        return values_N.tolist
    host_N = torch.empty_like(values_N, device="cpu", pin_memory=True)
    host_N.copy_(values_N, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return host_N.tolist()

    return read


class JsonLines:
    """A sink and a log: one JSON object a line. Lines after `images`, of steps that are made again, are dropped.

    spent: of the lines that were kept. What a full disk refuses waits in memory and is written with a later line.
    """

    def __init__(self, path: Path, images: int):
        self.path = path
        kept = [line for line in read_lines(path) if line["images"] <= images]
        self.spent = spent(kept)
        write_aside(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def __call__(self, line: dict) -> None:
        rounded = {k: float(f"{v:.6g}") if v and k.startswith(_ROUNDED) else v for k, v in line.items()}
        refused_before = bool(self._waiting)
        self._waiting += (json.dumps(rounded, allow_nan=False) + "\n").encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not refused_before:
                log.warning("%s: %s; its lines wait in memory", self.path, error.strerror)


_ROUNDED = ("seconds_", "images_per_second")  # losses keep every digit


def read_lines(path: Path) -> list[dict]:
    """The lines of a log, but for those that are none, as a killed process may leave the last one."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("images"), int):
            lines.append(line)
    return lines


def spent(lines: Iterable[dict]) -> tuple[float, float]:
    """Wall time of training by the lines of a run, without evaluation and checkpoints; and the same times the ranks."""
    seconds, of_devices, images = 0.0, 0.0, 0
    for line in lines:
        rate, world_size = line.get("images_per_second"), line.get("world_size", 1)
        if isinstance(rate, int | float) and rate > 0 and isinstance(world_size, int):
            duration = (line["images"] - images) / rate
            seconds, of_devices = seconds + duration, of_devices + duration * world_size
        images = line["images"]
    return seconds, of_devices


_PAUSE = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file gets a line now and then
_INTERVALS = {"mininterval": _PAUSE, "maxinterval": _PAUSE, "smoothing": 0.1}


def progress(portions: Sequence, name: str, *, shown: bool) -> Iterable:
    """`portions` with a bar of its own, which appears when they take more than a few seconds and then goes."""
    return tqdm(portions, desc=name, delay=3, leave=False, disable=not shown, **_INTERVALS)


class ProgressBar:
    """A sink: images done, images/s, time left, and the ELBO, on standard error."""

    def __init__(self, images: int, total_images: int, *, shown: bool):
        self._bar = tqdm(
            initial=images,
            total=total_images,
            unit="img",
            unit_scale=True,
            desc="train",
            disable=not shown,
            **_INTERVALS,
        )

    def __call__(self, line: dict) -> None:
        if line["loss"] is not None:
            terms = {name: f"{line[name]:.2f}" for name in ("elbo", "kl") if name in line}
            self._bar.set_postfix(terms or {"loss": f"{line['loss']:.4g}"}, refresh=False)
        self._bar.update(line["images"] - self._bar.n)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
