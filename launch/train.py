"""Train a model: deepspeed launch/train.py --config configs/digits.yaml [key=value ...]"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict

try:
    from launch.commands.cli import LOST, NON_FINITE, REQUEUE, Parser, run, say, show_warnings
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import LostRankError, NonFiniteError, UserError
from trainer.ranks.stop import StopRequest

EXAMPLES = """\
examples:
  deepspeed launch/train.py --config configs/digits.yaml
  python launch/train.py --config configs/mnist_case1.yaml method=vae engine.name=accelerate
  torchrun --nproc-per-node 2 launch/train.py --config configs/mnist_case1.yaml train.batch_size=256
  python launch/train.py --config configs/celeba_base.yaml --dry-run
"""


def main(argv: list[str]) -> int:
    stop = StopRequest().listen()  # before the slow imports: a signal never finds a run without its handler
    parser = Parser(description="Train a VAE or a BigLearn-VAE from shards of images.", epilog=EXAMPLES)
    parser.add_argument("--config", required=True, help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.batch_size=64 or method=vae")
    parser.add_argument(
        "--resume", choices=["auto", "never"], default="never",
        help="auto: go on from the newest whole checkpoint in run_dir if there is one (default: never)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check and count everything, write and train nothing")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    arguments = parser.parse_intermixed_args(argv)

    from trainer.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        return dry_run(config)
    try:
        return train(config, arguments.resume == "auto", stop)
    except LostRankError as error:
        say(f"error: {error}; {last_step(config)}; go on with --resume auto", by_each=True)
        return LOST
    except NonFiniteError as error:
        say(f"error: {error}; go on with --resume auto and lower learning rates (optimizer.*)")
        return NON_FINITE


def dry_run(config) -> int:
    """Build the model on a device without storage, count, and print; nothing is read but the index of the data."""
    import torch

    from biglearn_vae.images import open_index
    from data.order.holdout import trained_images
    from data.read.index import INDEX_NAME
    from data.sources import SOURCES
    from data.storage.addresses import TARS
    from data.storage.storage import is_there
    from data.tars.manifest import MANIFEST_NAME
    from trainer.build import meta_task
    from trainer.choices import choose, ways_of
    from trainer.config import dump_config
    from trainer.memory import expected_memory
    from trainer.metrics.trackers import require_trackers
    from trainer.ranks.launcher import adopt_environment
    from trainer.ranks.world import device_type
    from trainer.run_directory import RunDirectory
    from trainer.tasks.cost import measure_cost

    rank, world_size, _ = adopt_environment()
    if rank == 0:
        require_trackers(config.metrics.trackers, RunDirectory(config.run_dir).trackers)
    name = MANIFEST_NAME if config.data.source == TARS else INDEX_NAME
    if is_there(config.data.index_folder, name):  # codes are of as many images
        sizes = open_index(config.data).images
    else:
        sizes = SOURCES[config.data.source].splits if config.data.source in SOURCES else None
    images_per_epoch = trained_images(sizes["train"], config.data.holdout) if sizes else None
    config.micro_batch_size(world_size)
    task = meta_task(config)
    parameters = sum(p.numel() for p in task.parameters())
    carried_out, most = config, None
    try:
        device = torch.device(device_type(config.engine.device))
        carried_out = choose(config, device, parameters)
        ways = ways_of(carried_out, device)
        most = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    except UserError as error:  # a login node need not have what the run will have
        ways = {"not_here": str(error)}
    memory = asdict(expected_memory(carried_out, meta_task(config), world_size))
    counts = {
        "method": config.method,
        "mask_tokens": config.model.mask_tokens,
        "parameters": parameters,
        "parameters_millions_2_20": round(parameters / 2**20, 4),
        **asdict(measure_cost(task, config.data.patches, config.data.token_dim)),
        "images_per_epoch": images_per_epoch,
        "steps": config.steps,
        "world_size": world_size,
        "ways": ways,
        "memory": memory,
    }
    if rank == 0:
        print(dump_config(config))
        print("# GB that a rank needs:", ", ".join(f"{name} {size / 1e9:.3g}" for name, size in memory.items()))
        if most and memory["total"] > most:
            print(
                f"# more than the {most / 1e9:.3g} GB of the GPU: set a smaller train.batch_size or more "
                "train.accumulation_steps, engine.activation_checkpointing=true or a higher engine.zero_stage"
            )
        print(json.dumps(counts))
    return 0


def train(config, resume: bool, stop: StopRequest) -> int:
    """Train, and say at the end what was learned and where it lies."""
    from data.files import write_aside
    from data.prepare.at_once import prepare_at_once
    from trainer.loop import train as train_loop
    from trainer.ranks.world import joined_world
    from trainer.run_directory import RunDirectory

    run = RunDirectory(config.run_dir)
    with joined_world(config.engine.device, config.engine.timeout_seconds) as world:
        show_warnings(world.rank)
        with world.agreed():
            if world.is_main:
                if not resume:
                    run.refuse_present()  # at once; the loop asks again when the run is locked
                prepare_at_once(config.data)
        summary = train_loop(config, world, run, resume, stop)
        with world.agreed():
            if world.is_main and not summary["stopped_by"]:
                path = run.reports / "summary.json"
                if summary["images_per_second"] is None and path.exists():  # nothing was left to train
                    summary = json.loads(path.read_text())
                write_aside(path, json.dumps(summary, indent=1).encode())
                report(summary, run, config.data)
    if summary["stopped_by"]:
        newest = run.newest_checkpoint() or "no step was made"
        say(
            f"stopped by {summary['stopped_by']} after {summary['images']:,} images: {newest}; go on with --resume auto"
        )
        return REQUEUE
    return 0


def last_step(config) -> str:
    """How far the run has come, for a message."""
    from trainer.run_directory import RunDirectory

    lines = RunDirectory(config.run_dir).lines()
    return f"the last step on record is {lines[-1]['step']:,}" if lines else "no step is on record"


def report(summary: dict, run, data) -> None:
    """What was learned, in words."""
    before, after, value = summary["before"] or {}, summary["after"], "code's value" if data.code_dim else "pixel"
    images = "held-out" if data.holdout else "test"
    print(f"\n{summary['method']} ({summary['parameters']:,} parameters) after {summary['images']:,} images")
    for name, text in (
        ("biglearn_elbo", f"{images} BigLearnELBO"),
        ("joint_elbo", f"{images} JointELBO"),
        ("inpainting_error", f"in-painting error a {value}, half of the patches missing"),
        ("psnr", f"{images} PSNR, dB"),
    ):
        if name in after and name in before:
            print(f"  {text}: {before[name]:.4g} before, {after[name]:.4g} after")
    if summary["images_per_second"]:
        print(f"  speed: {summary['images_per_second']:,} images/s on {summary['world_size']} process(es)")
    picture = run.picture(summary["images"])
    if picture.exists():
        print(f"  picture: {picture}")
    print(f"  checkpoint: {run.newest_checkpoint()}")
    print(f"  report: {run.reports / 'summary.json'}")
    where = shlex.quote(str(run.path))
    if summary["method"] == "patch_ae":
        shards = shlex.quote(data.shards)
        print(f"  encode with it: python launch/encode.py --images {shards} --patch-autoencoder {where}")
    else:
        print(f"  use it: python launch/sample.py generate --model {where}   (--help names what else it can do)")


if __name__ == "__main__":
    run(main)
