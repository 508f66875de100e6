"""Both stages with one command: prepare the images, train the PatchAE, encode the images, train on the codes.

Each step is a command of its own, which is shown before it runs; what is whole already is skipped. An interrupted
pipeline goes on where it was when it is started again.
"""

import sys
from pathlib import Path

# This checkout first: an environment shared by two checkouts must not import the code of the other one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.errors import UserError
from launch.cli import REQUEUE, run, say, whole_number
from trainer.stop import StopRequest

if TYPE_CHECKING:
    from trainer.config import Config

EXAMPLES = """\
examples:
  python launch/pipeline.py --config configs/celeba_base.yaml --source ~/celeba
  python launch/pipeline.py --config configs/celeba_tiny.yaml --source ~/celeba run_dir=runs/faces --processes 2
  python launch/pipeline.py --config configs/celeba_tiny.yaml train.total_images=200000 stage_1.optimizer.eps=1e-8

Overrides are those of launch/train.py, for stage 2; with stage_1. before them, for stage 1. run_dir=DIR puts everything
below DIR: images/, patch_ae/ (the run of stage 1), latents/, and the run of stage 2 itself. Otherwise the configuration
says where each of them lies, and runs can share images, PatchAE and latents.
"""
_HERE = Path(__file__).resolve().parent
_POLL_S = 0.2


@dataclass(frozen=True)
class Step:
    """One command. whole: why it need not run, or None."""

    name: str
    command: list[str]
    whole: str | None = None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python launch/pipeline.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    for place, step in enumerate(_steps(options), start=1):
        print(f"\n==> {place} of 4: {step.name}", flush=True)
        if step.whole:
            print(f"    skipped: {step.whole}", flush=True)
            continue
        print(f"    {shlex.join(step.command)}", flush=True)
        code = 0 if options.dry_run else _wait(step.command, stop)
        if stop.signal_name:
            say(f"stopped by {stop.signal_name}; the same command goes on there")
            return REQUEUE
        if code:
            say(f"{step.name} ended with exit code {code}; the same command goes on there")
            return code
    return 0


def _wait(command: list[str], stop: StopRequest) -> int:
    """Run a command to its end; a signal that asks this process to stop is passed on, once."""
    child, told = subprocess.Popen(command), False
    while True:
        try:
            return child.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if stop.signal_name and not told:
                child.send_signal(signal.Signals[stop.signal_name])
                told = True


def _steps(options: argparse.Namespace) -> Iterator[Step]:
    """The four steps, each looked at when its turn has come."""
    import torch

    from data.index import INDEX_NAME
    from data.sources import SOURCES
    from trainer.config import load_config

    of_stage_1 = [text.removeprefix("stage_1.") for text in options.overrides if text.startswith("stage_1.")]
    of_stage_2 = [text for text in options.overrides if not text.startswith("stage_1.")]
    given = {text.partition("=")[0] for text in of_stage_2}
    if "run_dir" in given:
        base = Path(load_config(options.config, of_stage_2).run_dir)
        below = {"data.shards": "images", "data.latents": "latents", "data.patch_autoencoder": "patch_ae"}
        of_stage_2 += [f"{key}={base / name}" for key, name in below.items() if key not in given]
    stage_2 = load_config(options.config, of_stage_2)
    data = stage_2.data
    if not stage_2.stage_1 or not data.code_dim or not data.patch_autoencoder:
        raise UserError(
            f"{options.config} has one stage alone: name the configuration of its PatchAE as stage_1, and set"
            " data.code_dim; or train it with launch/train.py"
        )
    of_stage_1 += [f"run_dir={data.patch_autoencoder}", f"data.shards={data.shards}", f"data.source={data.source}"]
    stage_1 = load_config(stage_2.stage_1, of_stage_1)
    if stage_1.data.image_size != data.image_size:
        sizes = f"{stage_1.data.image_size} pixels in {stage_2.stage_1}, {data.image_size} in {options.config}"
        raise UserError(f"both stages need images of one size, not {sizes}: set data.image_size alike")

    python = [sys.executable]
    processes = options.processes or max(1, torch.cuda.device_count())
    for config in (stage_1, stage_2):  # at once, not after the hours of the steps before
        config.micro_batch_size(processes)
    ranks = python if processes == 1 else [*python, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]

    what = f"prepare the images of {data.source} in {data.shards}"
    command = [
        *python,
        str(_HERE / "prepare.py"),
        data.source,
        "--out",
        data.shards,
        "--image-size",
        str(data.image_size),
    ]
    command += ["--source", options.source] if options.source else []
    is_there = (Path(data.shards) / INDEX_NAME).exists()
    if SOURCES[data.source].image_files and not options.source and not is_there:
        raise UserError(f"{data.shards} has no images: give the folder of the original files with --source DIR")
    whole = "they are there, and without --source there is nothing to compare them with"
    yield Step(what, command, whole if is_there and not options.source else None)

    def training(config: "Config", path: str, overrides: list[str]) -> tuple[list[str], str | None]:
        command = [*ranks, str(_HERE / "train.py"), "--config", path, "--resume", "auto", *overrides]
        return command, _why_trained(config)

    yield Step(f"stage 1, train the PatchAE in {stage_1.run_dir}", *training(stage_1, stage_2.stage_1, of_stage_1))

    command = [*ranks, str(_HERE / "encode.py"), "--images", data.shards, "--patch-autoencoder", stage_1.run_dir]
    command += ["--out", data.latents, "--device", stage_2.engine.device]
    command += ["--statistics-only"] if data.encode == "on_the_fly" else []
    yield Step(f"encode the images in {data.latents}", command)  # which says itself when it is whole

    yield Step(f"stage 2, train on the codes in {stage_2.run_dir}", *training(stage_2, options.config, of_stage_2))


def _why_trained(config: "Config") -> str | None:
    """Why a run need not go on: this very model has seen all its images. None when it must."""
    from trainer.checkpoint import newest_whole
    from trainer.config import load_config
    from trainer.run_directory import RunDirectory

    run = RunDirectory(config.run_dir)
    if not run.config.exists():
        return None
    _, checkpoint, _ = newest_whole(run.checkpoints)
    if checkpoint is None or checkpoint.state.images < config.total_images:
        return None
    if load_config(run.config).of_model() != config.of_model():
        return None  # launch/train.py refuses, and says what differs
    return f"it has learned from {checkpoint.state.images:,} images, and {config.total_images:,} are asked for"


if __name__ == "__main__":
    run(main)
