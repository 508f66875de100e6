"""What one GPU does with the configurations as they are, and what each of its ways to compute a step is worth.

One process, a few minutes: the tests that need a GPU, then a table a part, the most telling ones first. Each part is
written when it is done, to rows.json and report.md in OUT, and is not made again; a part that fails is reported and
stops no other. What there was no time for is left for the next start.

examples:
  python benchmarks/gpu.py --minutes 7 --out gpu
  python benchmarks/gpu.py --smoke --out smoke        # the same parts with tiny models, on a CPU, in a minute or two
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

try:
    from benchmarks import throughput
    from launch.commands.cli import Parser, run
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import torch
from accelerate.state import AcceleratorState

from data.errors import UserError
from data.files import write_aside
from data.prepare import prepare
from launch.commands.machine import machine
from trainer.engines.schedule import Rates
from trainer.ranks.world import World, joined_world

TINY = ("model.embed_dim=32", "model.num_heads=2", "model.encoder_depth=1", "model.decoder_depth=1")
TINY += ("objective.plans=1", "objective.groups=4", "train.batch_size=16", "engine.precision=fp32")
EAGER = "engine.cuda_graphs=false engine.compile=false"
TEST_SECONDS = 150


@dataclass(frozen=True)
class Way:
    """A cell of the table: how it is called there, and the overrides that make it so."""

    label: str
    case: str
    method: str = "biglearn_u"
    mask_tokens: str = "query_only"
    engine: str = "accelerate"
    overrides: str = ""


def methods(case: str, engine: str, overrides: str = "") -> list[Way]:
    """All methods as they are, and the literal form of Ξ."""
    ways = [Way(method, case, method, "query_only", engine, overrides) for method in ("vae", "biglearn_t")]
    return [*ways, Way("biglearn_u", case, engine=engine, overrides=overrides),
            Way("biglearn_u, literal", case, mask_tokens="literal", engine=engine, overrides=overrides)]  # fmt: skip


def alternatives(case: str, overrides: str) -> list[Way]:
    """From plain steps to the fastest."""
    ways = {
        "sdpa": f"{EAGER} engine.attention=sdpa",
        "kernel": EAGER,
        "kernel, graphs": "engine.compile=false",
        "kernel, graphs, compiled": "engine.compile=true",
    }
    return [Way(label, case, overrides=f"{overrides} {how}".strip()) for label, how in ways.items()]


BF16 = "engine.precision=bf16"
PARTS: dict[str, list[Way]] = {
    "celeba_base": methods("celeba_base", "deepspeed"),
    "celeba_base, batch 128": [
        Way(f"biglearn_u, {engine}", "celeba_base", engine=engine, overrides="train.batch_size=128")
        for engine in ("deepspeed", "accelerate")
    ],
    "case 1": methods("1", "deepspeed", BF16),
    "ways, celeba_base": alternatives("celeba_base", ""),
    "ways, case 1, batch 2048": alternatives("1", f"{BF16} train.batch_size=2048"),
    "step": [
        Way(f"{name}, plain steps", "celeba_base", overrides=f"optimizer.name={name} {EAGER}")
        for name in ("adamw", "muon")
    ],
    "case 2": methods("2", "deepspeed", BF16),
    "case 4": methods("4", "deepspeed", BF16),
}
# What is aimed at on an H100: the part, its row, what is looked at, and from where on it is reached.
TARGETS = (
    ("celeba_base", "biglearn_u", "images_per_second", "at least", 5000),
    ("celeba_base", "biglearn_u", "mfu", "at least", 0.38),
    ("celeba_base", "biglearn_u", "time_against_vae", "at most", 1.85),
    ("celeba_base", "biglearn_t", "time_against_vae", "at most", 1.0),
    ("celeba_base", "biglearn_u", "time_against_literal", "at most", 1 / 1.7),
    ("ways, celeba_base", "kernel, graphs, compiled", "images_per_second", "at least", 6200),
    ("ways, celeba_base", "kernel, graphs, compiled", "mfu", "at least", 0.45),
    ("case 1", "biglearn_u", "images_per_second", "at least", 18_000),
    ("case 1", "biglearn_u", "data_wait_share", "at most", 0.01),
    ("ways, case 1, batch 2048", "kernel, graphs, compiled", "images_per_second", "at least", 100_000),
    ("step", "adamw, plain steps", "seconds_optimizer", "at most", 0.002),
    ("step", "adamw, plain steps", "host_seconds", "at most", 0.060),
)


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "rows.json"
    done: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
    device = "cpu" if options.smoke else "cuda"
    where = machine("torch", "deepspeed", "accelerate", device=device)
    if other := next((part for part in done.values() if part["hardware"] != where["hardware"]), None):
        raise UserError(f"{path} was measured on {other['hardware']}, this is {where['hardware']}: give another --out")
    done = {name: part for name, part in done.items() if part["revision"] == where["revision"]}
    with joined_world(device) as world, tempfile.TemporaryDirectory() as folder:
        prepare("digits", Path(folder) / "digits", image_size=32, progress=False)
        parts: dict[str, Callable[[], list[dict]]] = {} if options.smoke else {"tests": run_tests}
        parts |= {
            name: lambda ways=ways, name=name: measure(name, ways, f"{folder}/digits", world, options.smoke)
            for name, ways in PARTS.items()
        }
        longest = 0.0
        for name, part in parts.items():
            if name in done and "error" not in done[name]:
                continue
            if time.monotonic() - began + longest > 60 * options.minutes:
                break
            print(f"== {name}", flush=True)
            part_began = time.monotonic()
            try:
                found = {"rows": part()}
            except (RuntimeError, AssertionError) as error:  # of the device: too little memory, a kernel that fails
                found = {"error": str(error).partition("\n")[0]}
            seconds = time.monotonic() - part_began
            longest = max(longest, seconds if name != "tests" else 0.0)
            done[name] = found | {"seconds": round(seconds, 1)} | where
            write_aside(path, json.dumps(done, indent=1).encode())
            write_aside(options.out / "report.md", report(done).encode())
            print(text_of(name, done[name]), flush=True)
    left = [name for name in parts if name not in done]
    if left:
        print(f"no time was left for {', '.join(left)}: start the same command again")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)
    parser.add_argument("--minutes", type=float, default=7, help="begin no part after which it would be longer: 7")
    parser.add_argument("--smoke", action="store_true", help="tiny models on a CPU: whether all of it runs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where rows.json and report.md go")
    return parser.parse_args(arguments)


def run_tests() -> list[dict]:
    """Those that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/trainer/engines"]
    command += ["tests/model"]
    try:
        done = subprocess.run(command, cwd=throughput.ROOT, capture_output=True, text=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired as error:
        return [{"outcome": f"not done after {TEST_SECONDS} s", "log": str(error.stdout or "")[-2000:]}]
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    return [{"outcome": f"{lines[-1]} (code {done.returncode})", "log": done.stdout[-4000:]}]


def measure(name: str, ways: list[Way], shards: str, world: World, is_smoke: bool) -> list[dict]:
    """The rows of `throughput`, whose cells take turns, each with its label."""
    AcceleratorState._reset_state()
    torch.compiler.reset()
    cells = []
    for way in ways:
        overrides = [*way.overrides.split(), *(TINY if is_smoke else ())]
        if world.device.type == "cpu":
            overrides = [o for o in overrides if not o.startswith(("engine.attention", "engine.compile"))]
        cells.append(throughput.build(way.case, way.method, way.mask_tokens, way.engine, overrides, shards, world))
    peak = throughput.measure(cells, repeats=1 if is_smoke else 16, world=world)
    rows = [
        {"label": way.label, "overrides": way.overrides} | throughput.row(cell, cells, peak, world)
        for way, cell in zip(ways, cells, strict=True)
    ]
    if name == "step":
        for cell, row in zip(cells, rows, strict=True):
            row |= look_into(cell)
    del cells
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def look_into(cell: throughput.Cell) -> dict[str, float]:
    """Seconds of the phases of a step, which the host waits for, and of the host's work in a step that it does not."""
    rates, phases, host = Rates(learning=0.1, ema_decay=0.999, beta=0.01), [], []
    for plan in cell.plans[:8]:
        phases.append(cell.engine.timed_step(next(cell.batches), plan, rates)[1])
        throughput.synchronise(cell.engine.world)
        began = time.process_time()
        cell.engine.step(next(cell.batches), plan, rates)
        host.append(time.process_time() - began)
    of_phases = {phase: median(each[phase] for each in phases) for phase in phases[0]}
    return of_phases | {"host_seconds": median(host)}


def text_of(name: str, part: dict) -> str:
    """A part as Markdown."""
    lines = [f"## {name}", ""]
    if "error" in part:
        return "\n".join([*lines, f"failed: {part['error']}", ""])
    rows = part["rows"]
    if "outcome" in rows[0]:
        return "\n".join([*lines, rows[0]["outcome"], ""])
    lines += [
        f"{part['hardware']}, torch {part['versions']['torch']}, revision {part['revision']}, batch "
        f"{rows[0]['batch_size']}, {rows[0]['precision']}, {part['seconds']:.0f} s",
        "",
        "| | engine | images/s | time / vae | time / literal | MFU | peak GB | data wait | attention | graphs "
        "| compiled |",
        "|---" * 11 + "|",
    ]
    for r in rows:
        ratios, wait = throughput.relations(r)
        ways = [str(r["ways"][way]) for way in ("attention", "cuda_graphs", "compile")]
        figures = [f"{r['images_per_second']:,.0f}", *ratios, f"{r['mfu']:.0%}", f"{r['peak_memory_bytes'] / 1e9:.1f}"]
        lines.append("| " + " | ".join([r["label"], r["engine"], *figures, wait, *ways]) + " |")
    for r in rows:
        if "host_seconds" in r:
            of_phases = {key.removeprefix("seconds_"): value for key, value in r.items() if key.startswith("seconds_")}
            of_phases.pop("per_image")
            text = ", ".join(f"{phase} {1000 * value:.2f} ms" for phase, value in of_phases.items())
            lines += ["", f"{r['label']}: {text}; the host's work {1000 * r['host_seconds']:.1f} ms"]
    return "\n".join([*lines, ""])


def report(done: dict[str, dict]) -> str:
    """All parts, below what is aimed at."""
    lines = ["# Measured on one device", "", "| part | row | | aim | found | |", "|---" * 6 + "|"]
    for part, label, key, sense, aim in TARGETS:
        rows = done.get(part, {}).get("rows", [])
        value = next((row.get(key) for row in rows if row["label"] == label), None)
        verdict = "" if value is None else "reached" if (value >= aim) == (sense == "at least") else "missed"
        found = "not measured" if value is None else f"{value:,.4g}"
        lines.append(f"| {part} | {label} | {key} | {sense} {aim:,.4g} | {found} | {verdict} |")
    return "\n".join([*lines, "", *(text_of(name, part) for name, part in done.items())])


if __name__ == "__main__":
    run(main)
