"""What a rank tells Prometheus: the families, and the numbers that a scrape reads. docs/monitoring.md is made of it."""

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Literal

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

PREFIX = "biglearn_"
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)  # upper bounds


@dataclass(frozen=True)
class Family:
    """One family of series.

    of: the names under which the trainer hands its numbers over (those of metrics.jsonl and evaluations.jsonl, of
    trainer/checkpoints/writer.py and of make_exporter), and the values of `labels` for each. each_rank: other ranks
    have it, too, not the first alone. adds: what is handed over is added to what was.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    each_rank: bool = False
    adds: bool = False

    @property
    def full_name(self) -> str:
        """As it stands in a query."""
        return PREFIX + self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


def _phases(*names: str) -> dict[str, tuple[str, ...]]:
    return {f"seconds_{name}": (name,) for name in names}


FAMILIES = (
    Family("images", "counter", "training images seen", {"images": ()}),
    Family("steps", "counter", "optimizer steps made", {"step": ()}, each_rank=True),
    Family("tokens", "counter", "tokens that entered the transformer, of all ranks; counted from the masks' sizes"),
    Family("flops", "counter", "operations of the matrix products, forward and backward, of all ranks; counted so"),
    Family("training_seconds", "counter", "wall time of training, without evaluation and checkpoints"),
    Family("device_seconds", "counter", "the same times the ranks that there were; a rank has one device"),
    Family("step_duration_seconds", "histogram", "wall time of a step and of the wait for its data", each_rank=True),
    Family(
        "phase_seconds", "counter", "wall time of this process by what it did (data: the wait for them)",
        _phases("data", "step", "evaluation", "checkpoint"), ("phase",), each_rank=True, adds=True,
    ),
    Family(
        "sampled_phase_seconds", "gauge", "parts of the last step that was timed (metrics.phases_every_steps)",
        _phases("forward", "backward", "optimizer"), ("phase",), each_rank=True,
    ),
    Family(
        "loss", "gauge", "of the last step, nats (loss of patch_ae: mean squared error)",
        {name: (name,) for name in ("loss", "elbo", "reconstruction", "kl")}, ("term",),
    ),
    Family(
        "task_elbo_nats", "gauge", "ELBO of the last step by task",
        {f"elbo_{name}": (name,) for name in ("joint", "marginal", "conditional")}, ("task",),
    ),
    Family("gradient_norm", "gauge", "L2 norm of the gradient, last step, before clipping", {"gradient_norm": ()}),
    Family("learning_rate", "gauge", "of the last step", {"learning_rate": ()}),
    Family("beta", "gauge", "weight of the KL in the last step", {"beta": ()}),
    Family("skipped_steps", "counter", "steps left out because something was not finite", {"skipped_steps": ()}),
    Family("damaged_images", "counter", "damaged images replaced, of the rank that met most", {"damaged_images": ()}),
    Family(
        "evaluation_elbo_nats", "gauge", "ELBO of the test images at the last evaluation",
        {"biglearn_elbo": ("biglearn",), "joint_elbo": ("joint",), "joint_elbo_standard_prior": ("standard_prior",)},
        ("elbo",),
    ),
    Family(
        "evaluation_inpainting_error", "gauge", "mean squared error a value of what is missing, at the last evaluation",
        {
            "inpainting_error": ("0.5",), "inpainting_error_fifth": ("0.2",),
            "inpainting_error_block": ("all_but_centre",), "inpainting_error_lower": ("upper_half",),
        },
        ("observed",),
    ),
    Family("evaluation_active_latent_units", "gauge", "latent units in use, last evaluation", {"active_units": ()}),
    Family("evaluation_psnr_decibels", "gauge", "of patch_ae at the last evaluation", {"psnr": ()}),
    Family("last_step_timestamp_seconds", "gauge", "when the last step was made", each_rank=True),
    Family("last_checkpoint_timestamp_seconds", "gauge", "when the last one was complete", {"checkpoint_time": ()}),
    Family("checkpoint_duration_seconds", "gauge", "from its begin to complete", {"checkpoint_seconds": ()}),
    Family("checkpoint_size_bytes", "gauge", "of the last checkpoint", {"checkpoint_bytes": ()}),
    Family("restarts", "counter", "starts of this run after the first", {"restarts": ()}),
    Family("images_planned", "gauge", "images after which the run is done", {"images_planned": ()}),
    Family("world_size", "gauge", "ranks", {"world_size": ()}),
    Family("parameters", "gauge", "trained parameters", {"parameters": ()}),
    Family(
        "device_memory_bytes", "gauge", "of the GPU: allocated by tensors, reserved by torch, used by all, total",
        {f"memory_{kind}": (kind,) for kind in ("allocated", "reserved", "used", "total")}, ("kind",), each_rank=True,
    ),
    Family(
        "device_peak_flops_per_second", "gauge", "of the GPU, dense, as its maker says; or metrics.peak_flops",
        {"peak_flops": ()}, each_rank=True,
    ),
    Family("run", "info", "hyperparameters as labels; size is embed_dim x layers"),
)  # fmt: skip

_BY_NUMBER = {number: (family, labels) for family in FAMILIES for number, labels in family.of.items()}
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
                if value is not None and name in _BY_NUMBER:
                    family, labels = _BY_NUMBER[name]
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
