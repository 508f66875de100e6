"""Hand a training to SLURM: a job that goes on by itself after every interruption, until the model is trained.

Writes the configuration and a readable script into the run's directory, DIR/slurm, where the log of all starts
comes, too. A run that was submitted before goes on, on as many nodes as now asked for.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

if TYPE_CHECKING:
    from launch.slurm.cluster import Profile
    from launch.slurm.script import Job
    from trainer.config import Config

EXAMPLES = """\
examples:
  python launch/slurm/submit.py --config configs/mnist_case1.yaml --gpus-per-node 1
  python launch/slurm/submit.py --config configs/celeba_base.yaml --nodes 4 --gpus-per-node 8
  python launch/slurm/submit.py --pipeline --config configs/celeba_base.yaml --source /data/celeba --gpus-per-node 8
  python launch/slurm/submit.py --sweep configs/reproduction/table3.yaml --gpus-per-node 1 slurm.time=4:00:00
  python launch/slurm/submit.py --config configs/digits.yaml --ranks-per-node 2 --dry-run

Overrides are those of launch/train.py; with slurm. before them, of the profile. See docs/clusters.md.
"""


def main(arguments: list[str]) -> int:
    options = _parser().parse_intermixed_args(arguments)

    from launch.slurm import jobs
    from launch.slurm.cluster import load_profile
    from trainer.config import dump_config

    if (options.pipeline and options.sweep) or (options.source and not options.pipeline):
        raise UserError("--pipeline goes with --config, and --source with --pipeline")
    if (options.at_once and not options.sweep) or (options.ranks_per_node and options.gpus_per_node):
        raise UserError("--at-once goes with --sweep; --ranks-per-node is for nodes without GPUs")
    overrides = [text for text in options.overrides if not text.startswith("slurm.")]
    of_slurm = [text.removeprefix("slurm.") for text in options.overrides if text.startswith("slurm.")]
    profile = load_profile(options.profile, of_slurm)
    make = _pipeline if options.pipeline else _sweep if options.sweep else _single
    order = make(options, overrides)
    written_by = shlex.join(["python", "launch/slurm/submit.py", *arguments])
    if options.dry_run:
        for job in order.jobs:
            print(f"# {job.script}\n{_text(job, profile, written_by)}")
        return 0
    queue = jobs.read_queue()
    for path in order.jobs[0].runs:
        for name, job in jobs.live_jobs(path, queue).items():
            raise UserError(
                f"{path} has job {job} already ({name}, {queue[job].state}): wait for it, or first"
                f" `python launch/slurm/cancel.py {shlex.quote(str(path))}`"
            )
    for path, name, config in order.configs:
        _write(path / jobs.FOLDER / f"{name}.yaml", dump_config(config))
    for job in order.jobs:
        _write(job.script, _text(job, profile, written_by))
    for job, number in zip(order.jobs, _submit(order, options.at_once), strict=True):
        for place, path in enumerate(job.runs):
            jobs.note(path, job.name, f"{number}_{place}" if job.is_array else number, "submit", str(job.nodes))
        print(f"job {number}: {job.name} of {f'{len(job.runs)} runs' if job.is_array else job.home}")
    print(f"look at it: python launch/slurm/status.py {shlex.quote(str(order.jobs[0].home))}")
    return 0


def _submit(order: "_Order", at_once: int | None) -> list[str]:
    """The numbers of the jobs, each waiting for the one before; all of them are submitted or none."""
    from launch.slurm import jobs

    numbers: list[str] = []
    try:
        for job in order.jobs:
            chain = [f"--dependency=afterok:{numbers[-1]}", "--kill-on-invalid-dep=yes"] if numbers else []
            array = [f"--array=0-{len(job.runs) - 1}%{at_once or len(job.runs)}"] if job.is_array else []
            numbers.append(jobs.submit(job.script, *chain, *array))
    except BaseException:  # Ctrl-C, too
        if numbers:
            jobs.cancel(numbers)
        raise
    return numbers


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="one run")
    what.add_argument(
        "--sweep", metavar="FILE", help="all runs of a file of configs/reproduction/, as an array of jobs"
    )
    add("--pipeline", action="store_true", help="with --config: both stages, each step after the last one")
    add("--source", metavar="DIR", help="of --pipeline: folder of the original files")
    add("--nodes", type=whole_number, default=1, metavar="N", help="default: 1")
    add("--gpus-per-node", type=whole_number, default=0, metavar="M", help="one rank each; default: none")
    add("--ranks-per-node", type=whole_number, metavar="R", help="on nodes without GPUs; default: 1")
    add("--at-once", type=whole_number, metavar="N", help="of --sweep: so many of its jobs at a time; default: all")
    add("--profile", metavar="FILE", help="what is particular to the cluster; see configs/clusters/")
    add("--dry-run", action="store_true", help="print the scripts, write and submit nothing")
    add("overrides", nargs="*", metavar="key=value", help="as train.batch_size=512 or slurm.partition=debug")
    return parser


@dataclass(frozen=True)
class _Order:
    """What to submit: the jobs in their order, and the configurations they read.

    configs: the run, the name of the file, and what it holds.
    """

    jobs: list["Job"]
    configs: list[tuple[Path, str, "Config"]]


def _single(options: argparse.Namespace, overrides: list[str]) -> _Order:
    """One training."""
    from trainer.config import load_config

    config = load_config(options.config, overrides)
    _require_ready(config, _world_size(options))
    path = Path(config.run_dir)
    job = _job(options, "train", path, (path,), _training("train"), '"$run/checkpoints"')
    return _Order([job], [(path, "train", config)])


def _pipeline(options: argparse.Namespace, overrides: list[str]) -> _Order:
    """The steps of both stages that are not whole, in the directory of stage 2."""
    from launch.commands.stages import Stages

    stages = Stages.load(options.config, overrides)
    stages.require_fit(_world_size(options))
    path, jobs, configs = Path(stages.stage_2.run_dir), [], []
    steps = [*stages.steps(str(Path(options.source).resolve()) if options.source else None)]
    for step in steps:
        if step.whole:
            print(f"# {step.name} is left out: {step.whole}")
            continue
        if step.config:
            configs.append((path, step.name, step.config))
        command = _training(step.name) if step.config else shlex.join(step.command)
        progress, is_alone = shlex.quote(str(step.work)), not step.parallel
        jobs.append(_job(options, step.name, path, (path,), command, progress, is_alone=is_alone))
    if not configs:
        raise UserError(f"{path} is trained already: {steps[-1].whole}")
    return _Order(jobs, configs)


def _sweep(options: argparse.Namespace, overrides: list[str]) -> _Order:
    """An array, one place for each run that is not whole."""
    from launch.commands.stages import why_trained
    from reproduction.grid import load_grid

    base, configs = load_grid(Path(options.sweep), overrides)
    todo = [config for config in configs if not why_trained(config)]
    if not todo:
        raise UserError(f"{base}: all {len(configs)} runs are trained already")
    for config in todo:
        _require_ready(config, _world_size(options))
    print(f"# {len(todo)} of {len(configs)} runs of {options.sweep} are to be trained")
    runs = tuple(Path(config.run_dir) for config in todo)
    job = _job(options, "train", base, runs, _training("train"), '"$run/checkpoints"')
    return _Order([job], [(path, "train", config) for path, config in zip(runs, todo, strict=True)])


def _job(
    options: argparse.Namespace,
    name: str,
    home: Path,
    runs: tuple[Path, ...],
    command: str,
    progress: str,
    is_alone: bool = False,
) -> "Job":
    """is_alone: it is one process, whatever was asked for."""
    from launch.slurm.script import Job

    if is_alone:
        return Job(name, home, runs, command, progress, nodes=1, ranks_per_node=1)
    ranks = options.gpus_per_node or options.ranks_per_node or 1
    return Job(name, home, runs, command, progress, options.nodes, ranks, options.gpus_per_node)


def _training(name: str) -> str:
    """The command of a training, as shell; the configuration is the one that was written when it was submitted."""
    from launch.commands.stages import script

    return f'{shlex.quote(script("train.py"))} --config "$run/slurm/{name}.yaml" --resume auto'


def _world_size(options: argparse.Namespace) -> int:
    return options.nodes * (options.gpus_per_node or options.ranks_per_node or 1)


def _require_ready(config: "Config", world_size: int) -> None:
    """UserError now for what would end the job when its turn has come."""
    from biglearn_vae.images import open_codec, open_index
    from data.prepare.at_once import is_prepared_at_once

    config.micro_batch_size(world_size)
    if not is_prepared_at_once(config.data):  # by the job
        open_index(config.data, open_codec(config.data))


def _text(job: "Job", profile: "Profile", written_by: str) -> str:
    from launch.slurm.script import script

    return script(job, profile, Path.cwd(), written_by)


_HEADS = ("#!/bin/bash\n# Written by: ", "method: ")  # of the scripts and configurations that this command writes


def _write(path: Path, text: str) -> None:
    from data.files import make_folder, write_aside

    try:
        make_folder(path.parent)
        if path.exists() and not path.read_text(errors="replace").startswith(_HEADS):
            raise UserError(f"{path} was not written by this command: choose another run_dir=..., or move it away")
        write_aside(path, text.encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another run_dir=...") from None


if __name__ == "__main__":
    run(main)
