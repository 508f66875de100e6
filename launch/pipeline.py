"""Both stages with one command: prepare the images, train the PatchAE, encode the images, train on the codes.

Each step is a command of its own, which is shown before it runs; what is whole already is skipped. An interrupted
pipeline goes on where it was when it is started again.
"""

import shlex
import sys

try:
    from launch.commands.cli import MISTAKE, REQUEUE, Parser, run, say, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from launch.commands.ranks import run_ranks
from trainer.ranks.stop import StopRequest

EXAMPLES = """\
examples:
  python launch/pipeline.py --config configs/celeba_base.yaml --source ~/celeba
  python launch/pipeline.py --config configs/celeba_tiny.yaml --source ~/celeba run_dir=runs/faces --processes 2
  python launch/pipeline.py --config configs/celeba_tiny.yaml train.total_images=200000 stage_1.optimizer.eps=1e-8

Overrides are those of launch/train.py, for stage 2; with stage_1. before them, for stage 1. run_dir=DIR puts everything
below DIR: images/, patch_ae/ (the run of stage 1), latents/, and the run of stage 2 itself. Otherwise the configuration
says where each of them lies, and runs can share images, PatchAE and latents.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--config", required=True, help="of stage 2; it names that of stage 1")
    add("--source", metavar="DIR", help="folder of the original files; not needed when the images are prepared")
    add(
        "--processes", type=whole_number, metavar="N", help="of each training and the encoding; default: the GPUs, or 1"
    )
    add("--dry-run", action="store_true", help="show what would run, run nothing")
    add("overrides", nargs="*", metavar="key=value", help="as train.batch_size=64 or stage_1.train.batch_size=64")
    options = parser.parse_intermixed_args(arguments)

    stop = StopRequest().listen()
    import torch

    from launch.commands.stages import Stages

    stages = Stages.load(options.config, options.overrides)
    processes = options.processes or max(1, torch.cuda.device_count())
    stages.require_fit(processes)  # at once, not after the hours of the steps before
    for place, step in enumerate(stages.steps(options.source), start=1):
        print(f"\n==> {place} of 4: {step.title}", flush=True)
        if step.whole:
            print(f"    skipped: {step.whole}", flush=True)
            continue
        ranks, command = processes if step.parallel else 1, [sys.executable, *step.command]
        print(f"    {shlex.join(command)}{f'   (by {ranks} processes)' if ranks > 1 else ''}", flush=True)
        code = 0 if options.dry_run else run_ranks(command, ranks, stop)
        if stop.signal_name:
            say(f"stopped by {stop.signal_name}; the same command goes on there")
            return REQUEUE
        if code == MISTAKE:
            return code  # the step has said what it is, and what mends it
        if code:
            say(f"{step.title} ended with exit code {code}; the same command goes on there")
            return code
    return 0


if __name__ == "__main__":
    run(main)
