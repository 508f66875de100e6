"""What the exporter takes from a training: its share of a step, and what a scrape holds up.

Each step hands the exporter one line, in the training's own thread; a scrape runs in another thread, and holds the
interpreter while it writes its text. Both are timed alone, many times, and put in relation to a step of `--config`
on this machine, timed in between (median of --steps). scrape_share is for a scrape every --interval seconds.

examples:
  OMP_NUM_THREADS=1 python benchmarks/exporter.py --config configs/digits.yaml
  python benchmarks/exporter.py --config configs/mnist_case1.yaml --out exporter.json
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from launch.commands.machine import machine


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=whole_number, default=20)
    parser.add_argument("--calls", type=whole_number, default=20_000)
    parser.add_argument("--interval", type=whole_number, default=5, help="seconds between two scrapes; default: 5")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)

    from trainer.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        of_benchmark = [f"run_dir={folder}/run", f"metrics.targets={folder}/targets", "metrics.phases_every_steps=0"]
        config = load_config(options.config, [*options.overrides, *of_benchmark])
        row = measure(config, options)
    print(json.dumps(row, indent=1))
    if options.out:
        options.out.write_text(json.dumps(row, indent=1) + "\n")
    return 0


def measure(config, options: argparse.Namespace) -> dict:
    """One row: seconds of a line, of a scrape and of a step, and the shares."""
    from prometheus_client import CollectorRegistry, generate_latest

    from biglearn_vae.checkpoint import State
    from trainer.build import build_parts, micro_batches, step_inputs
    from trainer.build_prometheus import make_prometheus_server
    from trainer.ranks.world import join_world
    from trainer.run_directory import RunDirectory

    world = join_world(config.engine.device)
    parts, directory = build_parts(config, world), RunDirectory(config.run_dir)
    directory.acquire(resume=False)
    directory.create(config, 0, parts.codec, parts.ways)
    state = State(images=0, step=0, identity={})
    exporter = make_prometheus_server(config, world, directory, parts.copy, state, (0.0, 0.0))
    registry = CollectorRegistry()
    registry.register(exporter.exposition)
    batches = micro_batches(parts.train_stream, config, 0, parts.copy.groups, world)
    names = ("loss", "elbo", "reconstruction", "kl", "elbo_joint", "elbo_marginal", "elbo_conditional", "learning_rate")
    names += ("gradient_norm", "skipped_steps", "damaged_images", "seconds_data", "seconds_step", "world_size")

    steps, lines, scrapes = [], [], []
    with exporter:
        generate_latest(registry)
        exporter.exposition.start_counting().join()  # done once a run
        for step in range(options.steps):
            began = time.perf_counter()
            terms = parts.engine.step(next(batches), *step_inputs(config, parts.copy.plans, step, step))
            float(terms["loss"])  # waits for the device
            steps.append(time.perf_counter() - began)
            line = {"step": step, "images": step + 1, "images_per_second": 10.0, **dict.fromkeys(names, 0.5)}
            began = time.perf_counter()
            for call in range(options.calls // options.steps):
                exporter(line | {"images": call})
            lines.append((time.perf_counter() - began) / (options.calls // options.steps))
            began = time.perf_counter()
            generate_latest(registry)
            scrapes.append(time.perf_counter() - began)
    step, line, scrape = map(statistics.median, (steps, lines, scrapes))
    return {
        "config": options.config,
        "batch_size": config.train.batch_size,
        "step_seconds": step,
        "line_seconds": line,
        "line_share": line / step,
        "scrape_seconds": scrape,
        "scrape_share": scrape / options.interval,
        **machine("torch", "prometheus-client", device=world.device.type),
    }


if __name__ == "__main__":
    run(main)
