"""Encode shards of images with a trained PatchAE: the latent shards that stage 2 learns from.

Works under torchrun, deepspeed, accelerate launch and srun: every process takes its share of the shards.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, show_warnings
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.read.index import encode_command

EXAMPLES = """\
examples:
  python launch/encode.py --images datasets/celeba --patch-autoencoder runs/celeba_patchae-patch_ae
  torchrun --nproc-per-node 2 -- launch/encode.py --images datasets/celeba \\
      --patch-autoencoder runs/celeba_patchae-patch_ae --out datasets/celeba_latents
  python launch/prepare.py verify datasets/celeba_latents

An interrupted run goes on where it was when it is started again. --debug shows the traceback of an error.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="shards of images, from launch/prepare.py")
    add("--patch-autoencoder", required=True, metavar="RUN", help="a run of stage 1, or one of its checkpoints")
    add("--out", metavar="DIR", help="default: the name of --images with _latents behind it")
    add("--statistics-only", action="store_true", help="no shards: all that data.encode=on_the_fly needs")
    add("--overwrite", action="store_true", help="replace what the folder holds")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)

    from biglearn_vae.trained import read_patch_autoencoder
    from trainer.encoding import encode_images  # slow to import: only now, so that --help and mistakes answer at once
    from trainer.ranks.world import joined_world

    images, stage_1 = Path(options.images), Path(options.patch_autoencoder)
    out = Path(options.out or f"{str(images).rstrip('/')}_latents")
    with joined_world(options.device) as world:
        show_warnings(world.rank)
        with world.agreed():
            autoencoder = read_patch_autoencoder(stage_1)
        summary = encode_images(
            images,
            out,
            autoencoder,
            world,
            command=partial(
                encode_command,
                out,
                *(["--statistics-only"] if options.statistics_only else []),
                images=images,
                patch_autoencoder=stage_1,
            ),
            overwrite=options.overwrite,
            statistics_only=options.statistics_only,
        )
        if world.is_main:
            print(summary)
    return 0


if __name__ == "__main__":
    run(main)
