# ruff: noqa: E402
"""What a step would take on 1 to 1,024 GPUs: predicted from the messages of a step, not measured.

The messages of a step, their sizes and what a rank holds are counted (benchmarks/collectives.py;
benchmarks/scaling_check.py compares them with those of real ranks). The time of an image on one GPU is taken from rows
of benchmarks/throughput.py or benchmarks/gpu.py, where --measured names them, else assumed: --peak-tflops times --mfu.
The links, their latencies and the speed of a GPU's memory are assumed, at the values that follow.

A message crosses a node in a ring of its GPUs; between nodes each GPU sends its part, in a ring or, where that is
faster, an all_reduce in a tree. Computing, messages and optimizer follow one another: no more overlaps than what stage
3 gathers during the forward, and in plain torch, where no host waits for its GPU, what the hosts agree on.
Efficiency is the time of one GPU with as many images over that of a step. What a rank holds is without what it
keeps of the images; plain is engine.name=accelerate.

examples:
  python benchmarks/scaling.py --config configs/celeba_base.yaml --images 128 --out scaling.json
  python benchmarks/scaling.py --config configs/celeba_base.yaml --measured gpu/rows.json optimizer.name=adamw
"""

import argparse
import json
import math
import sys
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Self

try:
    from launch.commands.cli import Parser, run, whole_number
    from launch.commands.process import prepare_process
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

prepare_process()  # before torch is imported

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.collectives import (
    FP32,
    Message,
    StepShape,
    held_elements,
    messages_of_step,
    stage_of,
    step_shape,
)
from benchmarks.throughput import CASES
from data.errors import UserError
from launch.commands.machine import machine
from trainer.build import meta_task
from trainer.config import Config, load_config
from trainer.engines.optimizers.muon import newton_schulz
from trainer.tasks.cost import measure_cost

WAYS = {"plain": ("accelerate", 0), **{f"stage {stage}": ("deepspeed", stage) for stage in range(4)}}
# Moved for an element: AdamW's kernel reads 4 numbers and writes 3, norm and clipping take 3, the average 3.
OPTIMIZER_BYTES = 13 * FP32
FORWARD_SHARE = 1 / 3  # of computing
AIM = 0.9  # efficiency


@dataclass(frozen=True)
class Link:
    """What a GPU sends over: bytes a second, and seconds until the first of them is there."""

    bandwidth: float
    latency: float

    def ring(self, size: float, ranks: int) -> float:
        """Seconds in which `size` bytes are gathered from, or scattered to, ranks that hold equal parts of them."""
        return (ranks - 1) * (self.latency + size / ranks / self.bandwidth)

    def tree(self, size: float, ranks: int) -> float:
        """Seconds in which they go from the leaves to the root."""
        return math.ceil(math.log2(ranks)) * self.latency + size / self.bandwidth if ranks > 1 else 0.0


@dataclass(frozen=True)
class Network:
    """Nodes of `node_gpus` GPUs, a link within and one between them for each GPU; `host_latency` of a host, by TCP."""

    node_gpus: int
    within: Link
    between: Link
    host_latency: float

    def seconds(self, message: Message, ranks: int) -> float:
        """Of one message. UserError where ranks leave a part of a node empty."""
        inside = min(ranks, self.node_gpus)
        if ranks % inside:
            raise UserError(f"{ranks} GPUs are no whole nodes of {inside}: give a multiple of it or --node-gpus")
        if message.when == "host":
            return self.host_latency
        nodes, rounds = ranks // inside, 2 if message.operation == "all_reduce" else 1
        between = self.between.ring(message.bytes / inside, nodes)
        if message.operation == "all_reduce":
            between = min(between, self.between.tree(message.bytes / inside, nodes))
        return rounds * (self.within.ring(message.bytes, inside) + between)


@dataclass(frozen=True)
class Gpu:
    """One alone. flops, memory_bandwidth: operations of products, and bytes of memory moved, a second.

    step_seconds, image_seconds: of forward and backward, once a step and for each image. optimizer_factor: the seconds
    of an optimizer's step are so many times those that follow from flops and memory_bandwidth.
    """

    flops: float
    memory_bandwidth: float
    step_seconds: float = 0.0
    image_seconds: float = 0.0
    optimizer_factor: float = 1.0

    def fitted(self, predictor: "Predictor", seconds: dict[int, float], optimizer: float) -> Self:
        """One that was measured: its seconds of forward and backward, by number of images, and of plain's optimizer."""
        least, most = min(seconds), max(seconds)
        image = seconds[most] / most
        if least < most:  # the line through the two
            image = min(image, (seconds[most] - seconds[least]) / (most - least))
        factor = optimizer / optimizer_seconds(predictor.of("plain", 1), predictor.shape, 1, self)
        return replace(self, step_seconds=seconds[most] - most * image, image_seconds=image, optimizer_factor=factor)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    predictor = Predictor(load_config(options.config, options.overrides))
    links = [
        Link(1e9 * getattr(options, f"{place}_gbs"), 1e-6 * getattr(options, f"{place}_us"))
        for place in ("within", "between")
    ]
    network = Network(options.node_gpus, *links, 1e-6 * options.host_us)
    gpu = gpu_of(options, predictor)
    images = options.images or predictor.config.train.batch_size
    rows = [predictor.predict(way, gpus, images, gpu, network) for gpus in options.gpus for way in WAYS]
    most = max(options.gpus)
    lines = [
        fastest([row for row in rows if row["gpus"] == most], options.memory_gb),
        *(least_batch(predictor, way, most, gpu, network) for way in WAYS),
    ]
    print("\n".join([heading(options, predictor, gpu, images), "", table(rows), "", *lines]))
    if options.out:
        found = {"config": options.config, "overrides": options.overrides, "measured": options.measured}
        found |= {"assumed": {name: getattr(options, name) for name in ASSUMED}, "image_seconds": gpu.image_seconds}
        found |= {"rows": rows, "recommended": lines, **machine("torch", "deepspeed")}
        options.out.write_text(json.dumps(found, indent=1, default=str) + "\n")


# The assumptions: by option, the value and what it is.
ASSUMED = {
    "peak_tflops": (989.0, "TFLOP/s of products, bf16 of an H100"),
    "mfu": (0.3, "the share of them that is reached"),
    "memory_tbs": (3.35, "TB/s of a GPU's memory, of an H100"),
    "memory_gb": (80.0, "GB of a GPU's memory"),
    "within_gbs": (360.0, "GB/s of a GPU within a node: 80%% of NVLink 4"),
    "within_us": (3.0, "microseconds of a hop within a node"),
    "between_gbs": (45.0, "GB/s of a GPU between nodes: 90%% of 400 Gb/s InfiniBand for each GPU"),
    "between_us": (8.0, "microseconds of a hop between nodes"),
    "host_us": (30.0, "microseconds of a hop between hosts, by TCP"),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)

    def positive(text: str) -> float:
        value = float(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    def counts(text: str) -> list[int]:
        return [whole_number(count) for count in text.split(",")]

    add = parser.add_argument
    add("--config", required=True, metavar="FILE")
    add("--gpus", type=counts, default=[1, 8, 64, 256, 1024], help="default: 1,8,64,256,1024")
    add("--images", type=whole_number, help="of a GPU in a step; default: train.batch_size")
    add("--measured", type=Path, metavar="FILE", help="rows of throughput.py or gpu.py, of one GPU")
    add("--node-gpus", type=whole_number, default=8, help="GPUs of a node; default: %(default)s")
    for name, (value, meaning) in ASSUMED.items():
        add(f"--{name.replace('_', '-')}", type=positive, default=value, help=f"{meaning}; assumed: %(default)s")
    add("--out", type=Path, metavar="FILE", help="write assumptions, rows and recommendations as JSON")
    add("overrides", nargs="*", metavar="key=value", help="of the configuration")
    return parser.parse_intermixed_args(arguments)


class Predictor:
    """What a configuration computes, sends and holds, in each of WAYS."""

    def __init__(self, config: Config):
        self.config, task = config, meta_task(config)
        self.shape = step_shape(config, task, task.plans[0])
        self.unit = len(task.plans[0].groups) * config.train.accumulation_steps  # a GPU takes multiples of it

    def of(self, way: str, batch_size: int) -> Config:
        """The configuration in this way."""
        name, stage = WAYS[way]
        engine = self.config.engine.model_copy(update={"name": name, "zero_stage": stage})
        train = self.config.train.model_copy(update={"batch_size": batch_size})
        return self.config.model_copy(update={"engine": engine, "train": train})

    def predict(self, way: str, gpus: int, images: int, gpu: Gpu, network: Network) -> dict:
        """A row of the table, of steps with `images` images on each GPU. UserError where these do not split."""
        config = self.of(way, images * gpus)
        config.micro_batch_size(gpus)
        messages = messages_of_step(config, self.shape, gpus)
        seconds = {
            when: sum(network.seconds(message, gpus) for message in messages if message.when == when)
            for when in ("exposed", "forward", "host")
        }
        compute = gpu.step_seconds + images * gpu.image_seconds
        alone, optimizer = (optimizer_seconds(config, self.shape, ranks, gpu) for ranks in (1, gpus))
        late = max(0.0, seconds["forward"] - FORWARD_SHARE * compute)
        step = compute + seconds["exposed"] + late + optimizer
        step = step + seconds["host"] if host_waits(config) else max(step, seconds["host"])
        return {
            "way": way,
            "gpus": gpus,
            "images_per_gpu": images,
            "batch_size": config.train.batch_size,
            "step_seconds": step,
            "images_per_second": config.train.batch_size / step,
            "efficiency": (compute + alone) / step,
            "communication_share": 1 - (compute + optimizer) / step,
            "compute_seconds": compute,
            "optimizer_seconds": optimizer,
            **{f"{when}_seconds": value for when, value in seconds.items()},
            "messages": len(messages),
            "bytes_sent": sum(message.sent(gpus) for message in messages),
            "state_bytes": state_bytes(config, self.shape, gpus),
        }


def host_waits(config: Config) -> bool:
    """Whether a step makes the host wait for its GPU: DeepSpeed's do, that of stage 0 where it clips."""
    return config.engine.name == "deepspeed" and bool(config.engine.zero_stage or config.train.max_grad_norm)


def optimizer_seconds(config: Config, shape: StepShape, ranks: int, gpu: Gpu) -> float:
    """Of what a rank updates of the elements, and of its share of the matrices that Muon makes orthogonal."""
    stage = stage_of(config)
    elements = sum(held_elements(group, stage, ranks) for group in shape.groups) if stage else shape.elements
    flops = sum(
        math.ceil(count / ranks) * orthogonal_flops(matrix, config.engine.dtype)
        for group in shape.groups
        for matrix, count in group.matrices.items()
    )
    return gpu.optimizer_factor * (elements * OPTIMIZER_BYTES / gpu.memory_bandwidth + flops / gpu.flops)


@cache
def orthogonal_flops(matrix: tuple[int, int], dtype: torch.dtype) -> int:
    """Operations of Muon's iteration for one matrix of (rows, columns)."""
    with FlopCounterMode(display=False) as counter:
        newton_schulz(torch.empty(1, *matrix, dtype=dtype, device="meta"))
    return counter.get_total_flops()


def state_bytes(config: Config, shape: StepShape, ranks: int) -> int:
    """The most that a rank holds of weights, gradients, moments, average and DeepSpeed's buffers, all in fp32."""
    stage, groups = stage_of(config), shape.groups
    if stage == 0:
        return FP32 * (2 * shape.elements + sum(sum(group.sizes) * group.states for group in groups))
    held = [held_elements(group, stage, ranks) for group in groups]
    own = sum(piece * (1 + group.states) for piece, group in zip(held, groups, strict=True))  # and of the weights
    if stage == 1:
        return FP32 * (2 * shape.elements + own)
    pieces = sum(held) * (stage - 1)  # of gradients; of the weights that are gathered, too
    return FP32 * (2 * shape.elements + own + pieces)


def gpu_of(options: argparse.Namespace, predictor: Predictor) -> Gpu:
    """What one GPU does, measured where there are rows of it, else assumed."""
    gpu = Gpu(1e12 * options.peak_tflops * options.mfu, 1e12 * options.memory_tbs)
    if not options.measured:
        data = predictor.config.data
        cost = measure_cost(meta_task(predictor.config), data.patches, data.token_dim)
        return replace(gpu, image_seconds=cost.flops_per_image / gpu.flops)
    rows = rows_of(options.measured, Path(options.config).name, predictor.config)
    name = f"optimizer.name={predictor.config.optimizer.name}"
    timed = [row["seconds_optimizer"] for row in rows if "seconds_optimizer" in row and name in row["overrides"]]
    optimizer = min(timed, default=optimizer_seconds(predictor.of("plain", 1), predictor.shape, 1, gpu))
    seconds: dict[int, float] = {}  # of the fastest row of each batch
    for row in rows:
        size = row["batch_size"]
        seconds[size] = min(seconds.get(size, math.inf), row["seconds_per_image"] * size - optimizer)
    return gpu.fitted(predictor, seconds, optimizer)


def rows_of(path: Path, config_name: str, config: Config) -> list[dict]:
    """The rows of one GPU that were measured with this configuration. UserError where there are none."""
    try:
        found = json.loads(path.read_text())
        rows = found if isinstance(found, list) else [row for part in found.values() for row in part.get("rows", [])]
        wanted = {
            "case": next((case for case, name in CASES.items() if name == config_name), None),
            "method": config.method,
            "mask_tokens": config.model.mask_tokens,
            "precision": config.engine.precision,
            "world_size": 1,
        }
        rows = [row for row in rows if wanted.items() <= row.items()]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} holds no rows of throughput.py or gpu.py ({error}): give --measured such a file"
        ) from error
    if not rows:
        of = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise UserError(f"{path} has no row of {of}: measure it with benchmarks/throughput.py, or leave --measured out")
    return rows


def heading(options: argparse.Namespace, predictor: Predictor, gpu: Gpu, images: int) -> str:
    source = f"measured, {options.measured}" if options.measured else "assumed"
    return (
        f"{options.config}, optimizer {predictor.config.optimizer.name}, {images} images a GPU and step; "
        f"{1 / gpu.image_seconds:,.0f} images/s of a GPU's forward and backward ({source}); "
        + ", ".join(f"{name} {getattr(options, name):g}" for name in ASSUMED)
        + " (assumed)"
    )


def table(rows: list[dict]) -> str:
    """As Markdown."""
    lines = [
        "| GPUs | batch | way | step, ms | images/s | efficiency | communication | messages | MB sent | GB held |",
        "|---" * 10 + "|",
    ]
    for r in rows:
        figures = [f"{r['gpus']:,}", f"{r['batch_size']:,}", r["way"], f"{1000 * r['step_seconds']:.1f}"]
        figures += [f"{r['images_per_second']:,.0f}", f"{r['efficiency']:.0%}", f"{r['communication_share']:.0%}"]
        figures += [f"{r['messages']}", f"{r['bytes_sent'] / 1e6:,.0f}", f"{r['state_bytes'] / 1e9:.2f}"]
        lines.append("| " + " | ".join(figures) + " |")
    return "\n".join(lines)


def fastest(rows: list[dict], memory_gb: float) -> str:
    """The way to take, in a line, of rows with one number of GPUs."""
    fitting = [row for row in rows if row["state_bytes"] <= 1e9 * memory_gb]
    if not fitting:
        return f"no way fits: the least that a rank holds is {min(r['state_bytes'] for r in rows) / 1e9:.1f} GB"
    best = min(fitting, key=lambda row: row["step_seconds"])
    return (
        f"fastest on {best['gpus']:,} GPUs of {memory_gb:g} GB, batch {best['batch_size']:,}: {best['way']}, "
        f"{1000 * best['step_seconds']:.1f} ms, {best['images_per_second']:,.0f} images/s, {best['efficiency']:.0%}"
    )


def least_batch(predictor: Predictor, way: str, gpus: int, gpu: Gpu, network: Network) -> str:
    """The least batch of the AIM in efficiency, in a line, or why no run has it."""
    total = predictor.config.train.total_images

    def row(units: int) -> dict:
        return predictor.predict(way, gpus, units * predictor.unit, gpu, network)

    most = max(1, total // (gpus * predictor.unit))  # all images in one step
    units = 1 + bisect_left(range(1, most + 1), True, key=lambda n: row(n)["efficiency"] >= AIM)
    found = row(min(units, most))
    beside = {
        "messages": found["exposed_seconds"],
        "hosts": found["host_seconds"],
        "optimizer": found["optimizer_seconds"],
    }
    spent = ", ".join(f"{what} {1000 * seconds:.1f} ms" for what, seconds in beside.items())
    if units > most:
        return (
            f"{way}: {AIM:.0%} on {gpus:,} GPUs is out of reach, all {total:,} images in one step are too few ({spent})"
        )
    return (
        f"{way}: {AIM:.0%} on {gpus:,} GPUs from a batch of {found['batch_size']:,} on, "
        f"{found['images_per_gpu']:,} a GPU; "
        f"steps in all: {total // found['batch_size']:,}, of {1000 * found['step_seconds']:.1f} ms ({spent})"
    )


if __name__ == "__main__":
    run(main)
