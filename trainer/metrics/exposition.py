"""What a rank tells Prometheus: the numbers that a scrape reads."""

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from threading import Lock, Thread

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from trainer.metrics.registry import FAMILIES, NUMBERS, PREFIX

STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)  # upper bounds


_KINDS = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class Exposition(Collector):
    """A sink of lines, evaluations and whatever else has a name in FAMILIES; a scrape reads what it knows then.

    Nothing here waits for a device: numbers come late, as to every sink. count_cost: gives tokens and
    operations of an image; called, in a thread of its own, at the first scrape or before a push.
    """

    def __init__(
        self,
        info: dict[str, str],
        *,
        is_main: bool,
        device: torch.device,
        images: int,
        spent: tuple[float, float] = (0.0, 0.0),
        count_cost: Callable[[], tuple[float, float]] | None = None,
    ):
        """images, spent: where the run goes on (seconds, and seconds times ranks). info: of biglearn_run_info."""
        self._info, self._is_main, self._device, self._count_cost = info, is_main, device, count_cost
        self._lock = Lock()
        self._numbers: dict[tuple[str, tuple[str, ...]], float] = {("images", ()): images}
        self._numbers["training_seconds", ()], self._numbers["device_seconds", ()] = spent
        self._images, self._buckets, self._duration = images, [0] * (len(STEP_SECONDS) + 1), 0.0
        self._of_image: tuple[float, float] | None = None
        self._counting: Thread | None = None

    def __call__(self, values: Mapping[str, float | None]) -> None:
        """Take numbers by their names in FAMILIES; others, and None, are left out."""
        if values.get("images") == 0:  # the evaluation of an untrained model would flatten every curve
            return
        with self._lock:
            for name, value in values.items():
                if value is not None and name in NUMBERS:
                    family, labels = NUMBERS[name]
                    before = self._numbers.get((family.name, labels), 0.0) if family.adds else 0.0
                    self._numbers[family.name, labels] = before + value
            if "images_per_second" in values:
                self._take_step(values)

    def _take_step(self, line: Mapping[str, float]) -> None:
        seconds = (line["images"] - self._images) / line["images_per_second"]
        self._images = line["images"]
        self._buckets[bisect_left(STEP_SECONDS, seconds)] += 1
        self._duration += seconds
        self._numbers["training_seconds", ()] += seconds
        self._numbers["device_seconds", ()] += seconds * line["world_size"]
        self._numbers["last_step_timestamp_seconds", ()] = time.time()

    def collect(self) -> Iterator:
        """The families that have numbers, as prometheus_client wants them."""
        self.start_counting()
        self(device_memory(self._device))
        with self._lock:
            numbers, buckets, duration = dict(self._numbers), list(self._buckets), self._duration
        if self._of_image:
            tokens, flops = (of_image * numbers["images", ()] for of_image in self._of_image)
            numbers |= {("tokens", ()): tokens, ("flops", ()): flops}
        series: dict[str, list] = {}
        for (name, labels), value in numbers.items():
            series.setdefault(name, []).append((labels, value))
        for family in FAMILIES:
            if not (self._is_main or family.each_rank):
                continue
            name = PREFIX + family.name
            if family.kind == "info":
                yield InfoMetricFamily(name, family.help, value=self._info)
            elif family.kind == "histogram":
                counts = [sum(buckets[: n + 1]) for n in range(len(buckets))]
                bounds = [*map(str, STEP_SECONDS), "+Inf"]
                yield HistogramMetricFamily(
                    name, family.help, buckets=list(zip(bounds, counts, strict=True)), sum_value=duration
                )
            elif family.name in series:
                collected = _KINDS[family.kind](name, family.help, labels=family.labels)
                for labels, value in series[family.name]:
                    collected.add_metric(labels, value)
                yield collected

    def start_counting(self) -> Thread:
        """The thread that counts tokens and operations of an image; the same one each time."""
        with self._lock:
            if self._counting is None:
                self._counting = Thread(target=self._count, name="cost", daemon=True)
                self._counting.start()
        return self._counting

    def _count(self) -> None:
        if self._count_cost:
            self._of_image = self._count_cost()


def device_memory(device: torch.device) -> dict[str, int]:
    """Of a GPU; empty for a CPU. It asks the driver and torch's allocator, and waits for nothing."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "memory_allocated": torch.cuda.memory_allocated(device),
        "memory_reserved": torch.cuda.memory_reserved(device),
        "memory_used": total - free,
        "memory_total": total,
    }


# FLOP/s of dense matrix products as the makers' data sheets have them, (bf16, fp32 without TF32), by words of the name.
_PEAKS = {
    "H200 NVL": (835e12, 60e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
}


def known_peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a GPU whose data sheet we know; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for words, peaks in _PEAKS.items() if re.search(rf"\b{words}\b", name)), None)
    return found and found[precision == "fp32"]
