"""What a mode of mask tokens costs in quality: dense and query_only, trained alike, at equal steps and equal time.

Trains MNIST, Case 1, with every method, mode and seed asked for, one run after the other, and prints a table of the
test figures. A run that was interrupted goes on; one that is complete, or whose figures --out holds, is not made
again: the table may be filled in many sittings.

Equal steps are the figures at the end. Equal time are those of each run at the moment when the faster mode of its
method has ended, by the images a second that benchmarks/throughput.py measured in one run (--throughput): the wall
time of runs made one after the other would compare the days, not the modes.

examples:
  python launch/prepare.py mnist
  python benchmarks/quality.py --throughput benchmarks/results/throughput-cpu-case1.json --out quality.json
  python benchmarks/quality.py --epochs 100 --evaluate-images 10000 engine.device=cuda
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import torch

from data.files import write_aside
from launch.commands.machine import machine
from model.method import METHODS
from trainer.config import load_config
from trainer.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/mnist_case1.yaml"
MODES = ("query_only", "dense")
FIGURES = {
    "biglearn_elbo": "BigLearnELBO",
    "joint_elbo": "JointELBO",
    "inpainting_error": "error, S-ratio 0.5",
    "inpainting_error_fifth": "error, S-ratio 0.2",
}


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    cells = [(seed, method, mode) for seed in range(options.seeds) for method in options.methods for mode in MODES]
    rows = json.loads(options.out.read_text()) if options.out and options.out.exists() else []
    shown = []
    for cell in cells:
        wanted = wanted_row(options, *cell)
        row = next((row for row in rows if wanted.items() <= row.items()), None)
        if row is None:
            row = read(options, *cell)
            if row is None and not options.table_only:
                train(options, *cell)
                row = read(options, *cell)
            rows += [row] if row else []
            if row and options.out:
                write_aside(options.out, (json.dumps(rows, indent=1) + "\n").encode())
        shown += [row] if row else []
    print(table(shown, options.throughput))


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)
    add = parser.add_argument
    add("--methods", nargs="+", default=["vae", "biglearn_u"], choices=list(METHODS))
    add("--seeds", type=whole_number, default=3, help="seeds 0 .. N-1; default: %(default)s")
    add("--epochs", type=whole_number, default=2, help="default: %(default)s")
    evaluated = "first test images; default: %(default)s"
    add("--evaluate-images", type=whole_number, default=2000, metavar="N", help=evaluated)
    add("--runs", type=Path, default=Path("runs/quality"), help="run directories; default: %(default)s")
    add("--throughput", type=Path, help="rows of benchmarks/throughput.py, for equal time")
    add("--table-only", action="store_true", help="train nothing, print what is complete")
    add("--out", type=Path, help="the rows as JSON; those that it holds are not made again")
    add("overrides", nargs="*", metavar="key=value", help="of the configuration, as in launch/train.py")
    return parser.parse_args(arguments)


def directory(options: argparse.Namespace, seed: int, method: str, mode: str) -> Path:
    return options.runs / f"{options.epochs}-epochs-{method}-{mode}-{seed}"


def settings(options: argparse.Namespace, seed: int, method: str, mode: str) -> list[str]:
    images = options.epochs * 60_000
    return [
        f"run_dir={directory(options, seed, method, mode)}",
        f"method={method}",
        f"model.mask_tokens={mode}",
        f"seed={seed}",
        "engine.name=accelerate",
        "objective.beta=0.01",
        "objective.beta_start=null",
        "train.batch_size=32",
        "schedule.warmup_images=12800",
        f"train.total_images={images}",
        f"checkpoint.every_images={images // 10}",
        f"evaluate.every_images={images // 5}",
        "evaluate.picture_every_images=0",
        f"evaluate.images={options.evaluate_images}",
        *options.overrides,
    ]


def wanted_row(options: argparse.Namespace, seed: int, method: str, mode: str) -> dict:
    config = load_config(CONFIG, settings(options, seed, method, mode))
    what = {"method": method, "mask_tokens": mode, "seed": seed, "images": config.total_images}
    evaluated = {"evaluated_images": options.evaluate_images}
    trained = {"optimizer": config.optimizer.name, "batch_size": config.train.batch_size}
    return what | evaluated | trained | {"overrides": options.overrides}


def train(options: argparse.Namespace, seed: int, method: str, mode: str) -> None:
    overrides = settings(options, seed, method, mode)
    print(f"{method}, {mode}, seed {seed}", file=sys.stderr)
    command = [sys.executable, ROOT / "launch/train.py", "--config", CONFIG, "--resume", "auto", *overrides]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL)
    if done.returncode:  # it has said why; the same command goes on
        raise SystemExit(done.returncode)


def read(options: argparse.Namespace, seed: int, method: str, mode: str) -> dict | None:
    """The figures of one run at each of its evaluations, None where it is not complete."""
    row, run = wanted_row(options, seed, method, mode), RunDirectory(directory(options, seed, method, mode))
    if run.evaluation(row["images"]) is None:
        return None
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    row["evaluations"] = [{name: line[name] for name in ("images", *FIGURES)} for line in lines]
    return row | machine("torch", device="cuda" if torch.cuda.is_available() else "cpu")


def speed(path: Path, method: str, mode: str) -> float:
    """Images a second of Case 1 on one rank."""
    wanted = {"method": method, "mask_tokens": mode, "case": "1", "engine": "accelerate", "world_size": 1}
    rows = [row for row in json.loads(path.read_text()) if "images_per_second" in row and wanted.items() <= row.items()]
    return rows[0]["images_per_second"]


def between(lines: list[dict], name: str, images: int) -> float:
    """A figure after `images` images, linear between the evaluations around it."""
    after = next(line for line in lines if line["images"] >= images)
    before = [line for line in lines if line["images"] <= images][-1]
    if before["images"] == after["images"]:
        return after[name]
    share = (images - before["images"]) / (after["images"] - before["images"])
    return before[name] + share * (after[name] - before[name])


def table(rows: list[dict], throughput: Path | None) -> str:
    """Means over the seeds, with the smallest and the largest value; of equal time only with the speeds at hand."""
    lines = ["| | mode | seeds | images | " + " | ".join(FIGURES.values()) + " |", "|---" * (4 + len(FIGURES)) + "|"]
    for title in ("equal steps", "equal time") if throughput else ("equal steps",):
        for method in dict.fromkeys(row["method"] for row in rows):
            for mode in MODES:
                cell = [row for row in rows if (row["method"], row["mask_tokens"]) == (method, mode)]
                if not cell:
                    continue
                images = cell[0]["images"]
                if title == "equal time":
                    slower = speed(throughput, method, mode) / max(speed(throughput, method, other) for other in MODES)
                    images = round(images * slower)
                figures = [
                    summary([between(row["evaluations"], name, images) for row in cell], name) for name in FIGURES
                ]
                lines.append(f"| {title}, {method} | {mode} | {len(cell)} | {images:,} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def summary(values: list[float], name: str) -> str:
    digits = 2 if name.endswith("elbo") else 4
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


if __name__ == "__main__":
    run(main)
