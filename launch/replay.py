"""Make one step of a run again and look closely: which images and parameters are behind its numbers."""

import argparse
import json
import math
import sys

try:
    from launch.commands.cli import Parser, run, show_warnings
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

EXAMPLES = """\
example:
  python launch/replay.py --run runs/digits_8x8-biglearn_u --step 1200
  python launch/replay.py --run runs/digits_8x8-biglearn_u --step 1200 --json > step.json

The run itself is not touched; it may even be training. torchrun needs `--` before launch/replay.py.
"""
_SHOWN = 10  # of the images and parameters, the worst ones


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--run", required=True, metavar="DIR", help="the directory of the run")
    parser.add_argument("--step", required=True, type=int, metavar="N", help="the step, as in metrics.jsonl")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as engine.device=cpu")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    arguments = parser.parse_intermixed_args(argv)

    from biglearn_vae.find_images import find_data
    from trainer.config import load_config
    from trainer.ranks.world import joined_world
    from trainer.replay import replay
    from trainer.run_directory import RunDirectory

    directory = RunDirectory(arguments.run)
    if not directory.config.exists():
        raise UserError(f"{arguments.run} holds no run: give the run_dir of one with --run")
    config = load_config(directory.config, arguments.overrides)
    of_images = () if config.data.code_dim and config.data.encode == "ahead" else ("shards",)
    needed = (*of_images, "latents") if config.data.code_dim else of_images
    data = find_data(config.data, arguments.run, needed=needed, option="data.{}=DIR")
    config = config.model_copy(update={"run_dir": arguments.run, "data": data})
    if not 1 <= arguments.step <= config.steps:
        raise UserError(f"the run has the steps 1 to {config.steps:,}: --step {arguments.step} is none of them")
    with joined_world(config.engine.device) as world:
        show_warnings(world.rank)
        found = replay(config, world, directory, arguments.step)
    recorded = next((line for line in directory.lines() if line.get("step") == arguments.step), None)
    if world.is_main:
        print(json.dumps(found | {"recorded": recorded}, indent=1) if arguments.json else report(found, recorded))
    return 0


def report(found: dict, recorded: dict | None) -> str:
    """What was found, in words; the worst first: what is not finite, then the largest loss or gradient."""
    from trainer.replay import badness

    terms, samples = found["terms"], found["samples"]
    names = [name for name in samples[0] if name not in ("position", "index")]
    measured = "elbo" if "elbo" in names else "mse"
    samples = sorted(samples, key=lambda sample: badness(-sample[measured] if measured == "elbo" else sample["mse"]))
    norms = sorted(found["gradient_norms"].items(), key=lambda item: badness(item[1]))
    lines = [
        f"step {found['step']} from the checkpoint at step {found['from_step']}: images {found['images']:,} to "
        f"{found['images'] + len(samples) - 1:,} of the sequence",
        "  " + ", ".join(f"{name} {value:.6g}" for name, value in terms.items()),
        f"  recorded: {_recorded(recorded)}",
        f"worst images ({_finite(sample[measured] for sample in samples)}):",
        *(
            f"  position {sample['position']}, index {sample['index']} of the training split: "
            + ", ".join(f"{name} {sample[name]:.6g}" for name in names)
            for sample in reversed(samples[-_SHOWN:])
        ),
        f"largest gradients ({_finite(norm for _, norm in norms)}):",
        *(f"  {name}: {norm:.6g}" for name, norm in reversed(norms[-_SHOWN:])),
    ]
    return "\n".join(lines)


def _recorded(line: dict | None) -> str:
    if line is None:
        return "nothing (the step was not made, or after the last line that was written)"
    return ", ".join(f"{name} {line[name]}" for name in ("loss", "gradient_norm"))


def _finite(values) -> str:
    values = list(values)
    bad = sum(not math.isfinite(value) for value in values)
    return f"{bad} of {len(values)} not finite" if bad else f"all {len(values)} finite"


if __name__ == "__main__":
    run(main)
