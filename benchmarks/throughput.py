# ruff: noqa: E402
"""What a training step costs: every method and mode of mask tokens, in one run, as ratios.

literal      three dense passes over all tokens, as the paper writes the objective (two for vae): the baseline
dense        the same numbers without computing anything twice or in vain
query_only   mask tokens only ask, and only those that are wanted are computed

A step is a whole one of the training engine: forward, backward, AdamW, the average of the weights. All cells of a case
take turns, each turn with the next plan of mask sizes; `images_per_second` is the median over the turns, a ratio the
median over the turns of the two times in the same turn. flops_per_image counts the matrix products that are really
computed; mfu is their speed as a share of that of one large product of the same precision, timed in the same turns.
peak_memory_bytes: weights, gradients, moments and average, and the most that a step needed beside them.
data_wait_share: of a step's time, waiting for its batch (pixels: scikit-learn's digits at 32 pixels, from memory;
PatchAE codes are random numbers on the device, for which nothing waits).

--fractions adds the time of biglearn_u against the share of mask tokens in the decode. For two ranks, one core each:

  OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/throughput.py --device cpu --cases 1 --methods biglearn_u

examples:
  python benchmarks/throughput.py --device cpu --cases 1,2 --fractions --out throughput.json
  python benchmarks/throughput.py --cases 1 --modes query_only --engines accelerate train.batch_size=4096
  python benchmarks/throughput.py --cases celeba_base --engines deepspeed --out celeba.json
"""

import argparse
import ctypes
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
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
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from biglearn_vae.images import open_index, open_stream
from data.batch import Batch
from data.prepare import prepare
from data.read.config import DataConfig
from launch.commands.machine import machine
from model.masks import Plan, local_positions, plan_masks
from model.method import METHODS
from model.objective import elbo_terms
from trainer.build import build_engine, build_task, meta_task, micro_batches
from trainer.choices import choose, ways_of
from trainer.config import Config, load_config
from trainer.engines.engine import Engine
from trainer.engines.schedule import Rates
from trainer.ranks.world import World, joined_world
from trainer.tasks.biglearn import BigLearnTask
from trainer.tasks.cost import Cost, measure_cost

ROOT = Path(__file__).resolve().parents[1]
CASES = {**{str(n): f"mnist_case{n}.yaml" for n in range(1, 5)}, "celeba_base": "celeba_base.yaml"}
MODES = ("literal", "dense", "query_only")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LiteralTask(BigLearnTask):
    """The objective by encode and decode, one dense pass after the other."""

    def sample_terms(self, batch: Batch, plan: Plan, beta: Tensor | float) -> dict[str, Tensor]:
        share = self.objective.connected_share
        observed_BL, target_BL = plan_masks(plan, batch.index_B, self.model.patches, self.seed, share)
        noise_BZ = self._noise(batch.index_B, self.seed)
        terms = elbo_terms(self.model, batch.x_BLD, observed_BL, target_BL, noise_BZ)
        elbo_B = terms.elbo_B(beta)
        return {"elbo": elbo_B, "reconstruction": terms.reconstruction_B, "kl": terms.kl_B}


@dataclass
class Cell:
    """One way to train, and the seconds of each of its turns."""

    case: str
    method: str
    mask_tokens: str
    engine_name: str
    config: Config
    cost: Cost
    engine: Engine
    plans: tuple[Plan, ...]
    batches: Iterator[list[Batch]]
    synthetic: bool
    peak_memory_bytes: int = 0
    data_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def step(self, plan: Plan) -> tuple[float, float]:
        """Seconds of waiting for data, and of all."""
        start = time.perf_counter()
        batches = next(self.batches)
        waited = time.perf_counter() - start
        self.engine.step(batches, plan, Rates(learning=0.1, ema_decay=0.999, beta=0.01))
        synchronise(self.engine.world)
        return waited, time.perf_counter() - start


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    with joined_world(options.device) as world, tempfile.TemporaryDirectory() as folder:
        where = machine("torch", "deepspeed", "accelerate", device=world.device.type)
        where |= {"overrides": options.overrides}
        if world.is_main:
            prepare("digits", Path(folder) / "digits", image_size=32, progress=False)
        shards = world.broadcast(str(Path(folder) / "digits"))
        rows = []
        for case in options.cases:
            # What a process keeps of another case: the precision of Accelerate, the kernels of torch.compile.
            AcceleratorState._reset_state()
            torch.compiler.reset()
            cells = [
                build(case, *cell, options.overrides, shards, world)
                for cell in itertools.product(options.methods, options.modes, options.engines)
            ]
            peak = measure(cells, options.repeats, world)
            rows += [row(cell, cells, peak, world) | where for cell in cells]
            if world.is_main:
                print(table(rows[-len(cells) :]), flush=True)
            universal = [cell for cell in cells if cell.method == "biglearn_u"]
            if options.fractions and universal:
                rows += [line | where for line in measure_fractions(universal, options.repeats, world)]
                if world.is_main:
                    print(table_of_fractions(rows), flush=True)
            if options.out and world.is_main:
                options.out.write_text(json.dumps(rows, indent=1) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)

    def some_of(known):
        def chosen(text: str) -> list[str]:
            names = text.split(",")
            if unknown := [name for name in names if name not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
            return names

        return chosen

    add = parser.add_argument
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--cases", type=some_of(CASES), default=["1", "2"], help=f"of {','.join(CASES)}; default: 1,2")
    add("--methods", type=some_of(METHODS), default=list(METHODS), help=f"default: {','.join(METHODS)}")
    add("--modes", type=some_of(MODES), default=list(MODES), help=f"default: {','.join(MODES)}")
    add("--engines", type=some_of(["accelerate", "deepspeed"]), default=["accelerate", "deepspeed"])
    add("--repeats", type=whole_number, default=16, help="turns; one cycle of plans has 16; default: %(default)s")
    add("--fractions", action="store_true", help="time against the share of mask tokens, too")
    add("--out", type=Path, metavar="FILE", help="write a JSON list of rows")
    add("overrides", nargs="*", metavar="key=value", help="of the configurations, as train.batch_size=1024")
    return parser.parse_args(arguments)


def build(
    case: str, method: str, mask_tokens: str, engine: str, overrides: list[str], shards: str, world: World
) -> Cell:
    settings = [f"engine.name={engine}", f"engine.device={world.device.type}"]
    config = config_of(case, method, mask_tokens, (*settings, *overrides))
    config = choose(config, world.device, sum(p.numel() for p in meta_task(config).parameters()))
    cost = cost_of(case, method, mask_tokens, tuple(overrides))
    task = task_of(config, mask_tokens)
    config.micro_batch_size(world.size)
    if config.data.code_dim:
        batches = random_codes(config, task.groups, world)
    else:
        data = config.data.model_dump() | {"source": "digits", "shards": shards}
        config = config.model_copy(update={"data": DataConfig(**data)})
        stream = open_stream(config.data, open_index(config.data), "train", config.seed, world.device)
        batches = micro_batches(stream, config, 0, task.groups, world)
    plans = task.plans
    trained = build_engine(config, task, world)
    return Cell(case, method, mask_tokens, engine, config, cost, trained, plans, batches, bool(config.data.code_dim))


def config_of(case: str, method: str, mask_tokens: str, overrides: tuple[str, ...]) -> Config:
    mode = "query_only" if mask_tokens == "query_only" else "dense"
    settings = [f"method={method}", f"model.mask_tokens={mode}", *overrides]
    return load_config(ROOT / "configs" / CASES[case], settings)


def task_of(config: Config, mask_tokens: str) -> nn.Module:
    task = build_task(config)
    return LiteralTask(task.model, task.objective, task.seed) if mask_tokens == "literal" else task


@cache  # engines do not differ in it
def cost_of(case: str, method: str, mask_tokens: str, overrides: tuple[str, ...]) -> Cost:
    countable = ("engine.name=accelerate", "engine.attention=sdpa")  # the engine that takes all other settings
    config = config_of(case, method, mask_tokens, (*overrides, *countable))
    with torch.device("meta"):
        return measure_cost(task_of(config, mask_tokens), config.data.patches, config.data.token_dim)


def random_codes(config: Config, groups: int, world: World) -> Iterator[list[Batch]]:
    """The same standard normal tokens again and again."""
    shares = world.size * config.train.accumulation_steps
    index_B = local_positions(0, config.train.batch_size, groups, world.rank, shares).to(world.device)
    x_BLD = torch.randn(len(index_B), config.data.patches, config.data.token_dim, device=world.device)
    return itertools.repeat([Batch(x_BLD, index_B)] * config.train.accumulation_steps)


def measure(cells: list[Cell], repeats: int, world: World) -> dict[str, float]:
    """Let the cells take turns. Returns the FLOP/s of one large product for each precision."""
    for cell in cells:
        # A captured graph is replayed from the third time on that its plan comes; how much memory a step takes can be
        # seen before that, in the second one, after what libraries set up in the first.
        cell.step(cell.plans[0])
        cell.peak_memory_bytes = peak_memory(cell, world)
        for plan in 2 * cell.plans if world.device.type == "cuda" else ():
            cell.step(plan)
    precisions = {cell.config.engine.precision for cell in cells}
    products = {precision: [] for precision in precisions}
    bar = tqdm(total=repeats * len(cells), desc=f"case {cells[0].case}", disable=not world.is_main, leave=False)
    with bar:
        for repeat in range(repeats):
            for precision in precisions:
                products[precision].append(product_flops_per_second(DTYPES[precision], world))
            for cell in cells:
                waited, seconds = cell.step(cell.plans[repeat % len(cell.plans)])
                cell.data_seconds.append(waited)
                cell.seconds.append(seconds)
                bar.update()
    return {precision: median(values) for precision, values in products.items()}


def synchronise(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def product_flops_per_second(dtype: torch.dtype, world: World) -> float:
    """FLOP/s of one product of two large square matrices on this rank."""
    n = 8192 if world.device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=world.device, dtype=dtype) for _ in range(2))
    a @ b
    synchronise(world)
    start = time.perf_counter()
    a @ b
    synchronise(world)
    return 2 * n**3 / (time.perf_counter() - start)


def peak_memory(cell: Cell, world: World) -> int:
    """Bytes of weights, gradients, two moments and average, all in fp32, and the most that a step adds."""
    state = 5 * 4 * sum(p.numel() for p in cell.engine.parameters.values())
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        cell.step(cell.plans[0])
        return state + torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system: it would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = resident("VmRSS")
    cell.step(cell.plans[0])
    return state + resident("VmHWM") - before


def resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def row(cell: Cell, cells: list[Cell], products: dict[str, float], world: World) -> dict:
    """What is known of a cell, beside the others of its case and engine."""
    batch_size, precision = cell.config.train.batch_size, cell.config.engine.precision
    seconds = median(cell.seconds) / batch_size
    alike = {(c.method, c.mask_tokens): c for c in cells if c.engine_name == cell.engine_name}
    return {
        "method": cell.method,
        "case": cell.case,
        "mask_tokens": cell.mask_tokens,
        "engine": cell.engine_name,
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "ways": ways_of(cell.config, world.device),
        "batch_size": batch_size,
        "time_against_vae": paired(cell, alike.get(("vae", "query_only"))),
        "time_against_literal": paired(cell, alike.get((cell.method, "literal"))),
        "images_per_second": 1 / seconds,
        "seconds_per_image": seconds,
        **asdict(cell.cost),
        "mfu": cell.cost.flops_per_image / seconds / (world.size * products[precision]),
        "product_flops_per_second": products[precision],
        "peak_memory_bytes": cell.peak_memory_bytes,
        "data_wait_share": None if cell.synthetic else sum(cell.data_seconds) / sum(cell.seconds),
    }


def paired(cell: Cell, other: Cell | None) -> float | None:
    """Median over the turns of this cell's time against the other's in the same turn."""
    if other is None:
        return None
    return median(mine / its for mine, its in zip(cell.seconds, other.seconds, strict=True))


def relations(row: dict) -> tuple[list[str], str]:
    """For a table: the time against the vae's and the literal form's, and the share of waiting; empty where unknown."""
    ratios = [row["time_against_vae"], row["time_against_literal"]]
    wait = row["data_wait_share"]
    return ["" if r is None else f"{r:.2f}" for r in ratios], "" if wait is None else f"{wait:.2%}"


def table(rows: list[dict]) -> str:
    first = rows[0]
    lines = [
        f"\ncase {first['case']}, batch {first['batch_size']}, {first['world_size']} rank(s) of {first['threads']} "
        f"threads, {first['precision']}, {first['hardware']}, torch {first['versions']['torch']}\n",
        "| method | mode | engine | time / vae | time / literal | images/s | ms an image | tokens | token layers "
        "| GFLOP | MFU | peak MB | data wait |",
        "|---" * 13 + "|",
    ]
    for r in rows:
        ratios, wait = relations(r)
        figures = [
            f"{r['images_per_second']:,.0f}",
            f"{1000 * r['seconds_per_image']:.3g}",
            f"{r['tokens_per_image']:.0f}",
            f"{r['token_layers_per_image']:.0f}",
            f"{r['flops_per_image'] / 1e9:.3g}",
            f"{r['mfu']:.0%}",
            f"{r['peak_memory_bytes'] / 1e6:,.0f}",
        ]
        lines.append("| " + " | ".join([r["method"], r["mask_tokens"], r["engine"], *ratios, *figures, wait]) + " |")
    return "\n".join(lines)


def measure_fractions(cells: list[Cell], repeats: int, world: World) -> list[dict]:
    """Seconds an image of biglearn_u when S has a fixed size and T is all the rest."""
    patches = cells[0].config.data.patches
    sizes = [round(share * patches / 16) for share in (0, 2, 4, 8, 12, 14, 15)]
    seconds: dict[tuple[int, int], list[float]] = {}
    cells = [cell for cell in cells if cell.engine_name == cells[0].engine_name]
    set_up = 2 if world.device.type == "cuda" else 1  # a CUDA graph is recorded the second time
    for repeat in range(-set_up, max(1, repeats // 4)):
        for n_S in tqdm(sizes, desc="fractions", disable=not world.is_main, leave=False):
            for i, cell in enumerate(cells):
                groups = len(cell.plans[0].groups)
                _, elapsed = cell.step(Plan(((n_S, patches - n_S),) * groups))
                if repeat >= 0:
                    seconds.setdefault((n_S, i), []).append(elapsed / cell.config.train.batch_size)
    return [
        {
            "method": cell.method,
            "case": cell.case,
            "mask_tokens": cell.mask_tokens,
            "engine": cell.engine_name,
            "world_size": world.size,
            "batch_size": cell.config.train.batch_size,
            "mask_fraction": 1 - n_S / patches,
            "seconds_per_image": median(seconds[n_S, i]),
        }
        for n_S in sizes
        for i, cell in enumerate(cells)
    ]


def table_of_fractions(rows: list[dict]) -> str:
    rows = [row for row in rows if "mask_fraction" in row]
    rows = [row for row in rows if row["case"] == rows[-1]["case"]]
    modes = list(dict.fromkeys(row["mask_tokens"] for row in rows))
    lines = [
        f"\ncase {rows[0]['case']}, biglearn_u, {rows[0]['engine']}: ms an image by the share of [M] in the decode\n",
        "| share | " + " | ".join(modes) + " |",
        "|---" * (1 + len(modes)) + "|",
    ]
    for share in dict.fromkeys(row["mask_fraction"] for row in rows):
        of_modes = {r["mask_tokens"]: r["seconds_per_image"] for r in rows if r["mask_fraction"] == share}
        lines.append(f"| {share:.0%} | " + " | ".join(f"{1000 * of_modes[mode]:.3g}" for mode in modes) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
