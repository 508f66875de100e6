"""One recorder; its sinks receive each step some steps late."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from data.errors import NonFiniteError
from trainer.metrics.registry import NUMBERS, MetricsConfig


def require_finite(line: dict) -> None:
    """NonFiniteError that names the first value of a line that is no finite number."""
    for name, value in line.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value} at step {line['step']}")


class Metrics:
    """Takes the terms of every step and hands them, read from the device some steps late, to every sink.

    A sink is a function of one dict: names of NUMBERS to numbers, None for what is not finite in a skipped step.

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
            unknown = line.keys() - NUMBERS.keys() - {"images_per_second"}  # which Prometheus makes of the counters
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
