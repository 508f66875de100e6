# ruff: noqa: E402
"""Whether benchmarks/scaling.py predicts what ranks on the CPU of this machine do: their messages and their time.

Ranks that know of one another, and as many that are each alone, take turns, one thread each, with random images. In
every way: the messages of a step are counted where torch sends them and compared, one by one, with those predicted; its
seconds, the median over all rounds, are compared with what follows from those of a rank alone, from the bandwidth and
latency of each collective, measured between the steps, and from the speed of products and of memory.

example:
  python benchmarks/scaling_check.py --config configs/mnist_case2.yaml --images 8 --rounds 3 --out check.json
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

try:
    from launch.commands.cli import Parser, run, whole_number
    from launch.commands.process import prepare_process
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

prepare_process()  # before torch is imported

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from benchmarks.collectives import CountedMessages, Message, StepShape, messages_of_step
from benchmarks.scaling import WAYS, Gpu, Link, Predictor
from benchmarks.throughput import DTYPES, product_flops_per_second
from data.batch import Batch
from data.errors import UserError
from launch.commands.machine import machine
from trainer.build import build_engine, build_task
from trainer.choices import choose
from trainer.config import Config, load_config
from trainer.engines.engine import Engine
from trainer.engines.schedule import Rates
from trainer.ranks.world import World, joined_world

WARM_STEPS = 3  # the third step in stage 3 is as all later ones
COLLECTIVES: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "all_reduce": lambda whole, part: dist.all_reduce(whole),
    "all_gather": lambda whole, part: dist.all_gather_into_tensor(whole, part),
    "reduce_scatter": lambda whole, part: dist.reduce_scatter_tensor(part, whole),
}
SIZES = (64, 8_000_000)  # elements of the messages by which a link is measured


@dataclass(frozen=True)
class MeasuredNetwork:
    """By collective the link between the ranks of this machine; hosts agree outside of a step of the engine."""

    links: dict[str, Link]

    def seconds(self, message: Message, ranks: int) -> float:
        if message.when == "host":
            return 0.0
        rounds = 2 if message.operation == "all_reduce" else 1
        return rounds * self.links[message.operation].ring(message.bytes, ranks)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.worker:
        with joined_world("cpu") as world:
            found = work(options, world)
            if world.is_main:
                options.worker.write_text(json.dumps(found))
        return 0
    load_config(options.config, options.overrides)  # a mistake is said once
    with tempfile.TemporaryDirectory() as folder:
        alone, together = [], []
        for number in range(options.rounds):
            files = [Path(folder) / f"{number}-{rank}.json" for rank in range(options.ranks)]
            run_ranks([(file, {}) for file in files], arguments)
            alone += [json.loads(file.read_text()) for file in files]
            port = free_port()
            ranks = [
                {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": options.ranks, "MASTER_PORT": port}
                for rank in range(options.ranks)
            ]
            run_ranks([(files[0], {"MASTER_ADDR": "127.0.0.1", **world}) for world in ranks], arguments)
            together.append(json.loads(files[0].read_text()))
    rows = compare(load_config(options.config, options.overrides), options, alone, together)
    print(table(rows, options), flush=True)
    if options.out:
        where = machine("torch", "deepspeed", "accelerate") | {"config": options.config, "overrides": options.overrides}
        options.out.write_text(json.dumps([row | where for row in rows], indent=1) + "\n")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("example:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE")
    add("--ranks", type=whole_number, default=2, help="default: %(default)s")
    add("--images", type=whole_number, default=8, help="of a rank in a step; default: %(default)s")
    add("--steps", type=whole_number, default=8, help="timed, in each way and round; default: %(default)s")
    add("--rounds", type=whole_number, default=3, help="default: %(default)s")
    add("--worker", type=Path, metavar="FILE", help="be one of the ranks: the first writes what it found to FILE")
    add("--out", type=Path, metavar="FILE", help="write a JSON list of rows")
    add("overrides", nargs="*", metavar="key=value", help="of the configuration")
    return parser.parse_intermixed_args(arguments)


def run_ranks(ranks: list[tuple[Path, dict]], arguments: list[str]) -> None:
    """Let processes of this script, each with the file that it may write and a rank's environment, run to their end."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    processes = []
    for file, world in ranks:
        command = [sys.executable, __file__, *arguments, "--worker", str(file)]
        environment = inherited | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in world.items()}
        processes.append(subprocess.Popen(command, env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise UserError("a rank failed, see above")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def work(options: argparse.Namespace, world: World) -> dict:
    """What a world of this many ranks does: by way its messages and seconds, and what it is made of."""
    predictor = Predictor(load_config(options.config, options.overrides))
    found: dict = {"ways": {}, "links": []}
    runs = []
    for way in WAYS:
        config = choose(predictor.of(way, options.images * world.size), world.device, predictor.shape.elements)
        run = Run(config, world)
        found["ways"][way] = {**run.messages(predictor.shape), "seconds": [], "optimizer_seconds": []}
        runs.append((run, found["ways"][way]))
    precision = DTYPES[predictor.config.engine.precision]
    for _ in range(options.steps):
        for run, of_way in runs:
            of_way["seconds"].append(run.seconds())
            if world.size == 1:
                of_way["optimizer_seconds"].append(run.optimizer_seconds())
        if world.size > 1:
            found["links"].append(measure_links())
    found["flops"] = median(product_flops_per_second(precision, world) for _ in range(5))
    found["memory_bandwidth"] = memory_bandwidth()
    return found


class Run:
    """An engine and the batches of this rank, always with the first plan."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        AcceleratorState._reset_state()  # it keeps the precision of another engine
        task = build_task(config)
        self.plan = task.plans[0]
        self.engine: Engine = build_engine(config, task, world)
        size, data = config.micro_batch_size(world.size), config.data
        self.batches = [
            Batch(torch.rand(size, data.patches, data.token_dim), torch.arange(size) + size * world.rank)
            for _ in range(config.train.accumulation_steps)
        ]

    def step(self, step: Callable[..., object]) -> object:
        return step(self.batches, self.plan, Rates(learning=0.1, ema_decay=0.999, beta=0.01))

    def messages(self, shape: StepShape) -> dict[str, list]:
        """Of a step and what the loop says after it: predicted, and counted on this rank."""
        for _ in range(WARM_STEPS):
            with CountedMessages() as messages:
                self.step(self.engine.step)
                self.world.max_over_ranks(False, 0, False)
        predicted = messages_of_step(self.config, shape, self.world.size)
        return {
            "predicted": [(message.operation, message.bytes) for message in predicted],
            "counted": [(message.operation, message.bytes) for message in messages.seen],
        }

    def seconds(self) -> float:
        if self.world.size > 1:
            dist.barrier()
        began = time.perf_counter()
        self.step(self.engine.step)
        return time.perf_counter() - began

    def optimizer_seconds(self) -> float:
        _, seconds = self.step(self.engine.timed_step)
        return seconds["seconds_optimizer"]


def measure_links() -> dict[str, list[float]]:
    """By collective its seconds with each of SIZES."""
    ranks = dist.get_world_size()
    seconds: dict[str, list[float]] = {}
    for name, call in COLLECTIVES.items():
        for size in SIZES:
            whole, part = torch.zeros(size), torch.zeros(size // ranks)
            call(whole, part)
            dist.barrier()
            repeats = 1 if size == max(SIZES) else 20
            began = time.perf_counter()
            for _ in range(repeats):
                call(whole, part)
            seconds.setdefault(name, []).append((time.perf_counter() - began) / repeats)
    return seconds


def memory_bandwidth() -> float:
    """Bytes a second that a sum of two large tensors moves."""
    a, b = (torch.ones(2**24) for _ in range(2))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a.add_(b)
        seconds.append(time.perf_counter() - began)
    return 3 * a.numel() * a.element_size() / median(seconds)


def compare(config: Config, options: argparse.Namespace, alone: list[dict], together: list[dict]) -> list[dict]:
    """By way what was predicted and what was found."""
    predictor, ranks = Predictor(config), options.ranks
    measured = [links for each in together for links in each["links"]]
    network = MeasuredNetwork({name: link(name, measured, ranks) for name in COLLECTIVES})
    rows = []
    for way in WAYS:
        step, optimizer = (
            median(value for each in alone for value in each["ways"][way][kind])
            for kind in ("seconds", "optimizer_seconds")
        )
        gpu = Gpu(*(median(each[kind] for each in alone) for kind in ("flops", "memory_bandwidth")))
        gpu = gpu.fitted(predictor, {options.images: step - optimizer}, optimizer)
        predicted = predictor.predict(way, ranks, options.images, gpu, network)
        found = median(value for each in together for value in each["ways"][way]["seconds"])
        sent = together[0]["ways"][way]
        counts = {kind: Counter(map(tuple, sent[kind])) for kind in ("predicted", "counted")}
        rows.append(
            {
                "way": way,
                "ranks": ranks,
                "images_per_rank": options.images,
                "messages_predicted": counts["predicted"].total(),
                "messages_counted": counts["counted"].total(),
                "bytes_predicted": sum(size for _, size in sent["predicted"]),
                "bytes_counted": sum(size for _, size in sent["counted"]),
                "messages_agree": counts["predicted"] == counts["counted"],
                "alone_seconds": step,
                "predicted_seconds": predicted["step_seconds"],
                "found_seconds": found,
                "error": predicted["step_seconds"] / found - 1,
                "communication_share": predicted["communication_share"],
            }
        )
    return rows


def link(name: str, measured: list[dict], ranks: int) -> Link:
    """Latency and bandwidth of a collective, from its seconds with a small and a large message."""
    small, large = (median(each[name][i] for each in measured) for i in range(len(SIZES)))
    hops = (2 if name == "all_reduce" else 1) * (ranks - 1)
    return Link(bandwidth=4 * (SIZES[1] - SIZES[0]) / ranks / ((large - small) / hops), latency=small / hops)


def table(rows: list[dict], options: argparse.Namespace) -> str:
    lines = [
        f"{options.config}, {options.ranks} ranks of {options.images} images; medians of "
        f"{options.rounds * options.steps} steps",
        "",
        "| way | messages, predicted | counted | MB, predicted | counted | alone, ms | predicted | found | error "
        "| communication |",
        "|---" * 10 + "|",
    ]
    for r in rows:
        seconds = [f"{1000 * r[f'{kind}_seconds']:.0f}" for kind in ("alone", "predicted", "found")]
        sizes = [f"{r[f'bytes_{kind}'] / 1e6:,.3f}" for kind in ("predicted", "counted")]
        counts = [str(r["messages_predicted"]), str(r["messages_counted"])]
        shares = [f"{r['error']:+.0%}", f"{r['communication_share']:.0%}"]
        lines.append("| " + " | ".join([r["way"], *counts, *sizes, *seconds, *shares]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
