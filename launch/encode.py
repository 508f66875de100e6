"""Encode shards of images with a trained PatchAE: the latent shards that stage 2 learns from.

Works under torchrun, deepspeed, accelerate launch and srun: every process takes its share of the shards.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from launch.commands.cli import Parser, run, show_warnings, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError
from data.read.index import encode_command, load_index, read_index, require_folder_path
from data.storage.addresses import TARS, names_tars

if TYPE_CHECKING:
    from data.read.config import DataConfig

EXAMPLES = """\
examples:
  python launch/encode.py --images datasets/celeba --patch-autoencoder runs/celeba_patchae-patch_ae
  torchrun --nproc-per-node 2 -- launch/encode.py --images datasets/celeba \\
      --patch-autoencoder runs/celeba_patchae-patch_ae --out datasets/celeba_latents
  python launch/encode.py --images 's3://bucket/faces/{00000..00099}.tar' --image-size 128 \\
      --patch-autoencoder runs/celeba_patchae-patch_ae --out s3://bucket/faces_latents
  python launch/encode.py --images datasets/celeba --patch-autoencoder runs/celeba_patchae-patch_ae --flip
  python launch/prepare.py verify datasets/celeba_latents

An interrupted run goes on where it was when it is started again. --debug shows the traceback of an error.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    what = "folder or address of shards from launch/prepare.py, or tar files of other tools, with {00000..00099} or *"
    add("--images", required=True, metavar="DIR|SHARDS", help=what)
    add("--image-size", type=whole_number, metavar="N", help="of tar files: pixels; other images have theirs")
    add("--test-shards", metavar="SHARDS", help="of tar files: those to test with; default: as launch/prepare.py index")
    add("--label", metavar="FIELD", help="of tar files: field of their JSON that is the label; default: cls, or 0")
    add("--index", metavar="DIR", help="of tar files: of launch/prepare.py index; default: as there")
    add("--cache", metavar="DIR", help="of what lies elsewhere, as data.cache; default: below ~/.cache")
    add("--cache-bytes", type=int, metavar="N", help="as data.cache_bytes; 0 keeps nothing; default: 32 GiB")
    add("--patch-autoencoder", required=True, metavar="RUN", help="a run of stage 1, or one of its checkpoints")
    add("--out", metavar="DIR", help="folder or address; default: the name of --images, or their index, and _latents")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--flip", action="store_true", help="with the codes of mirrored images, which data.flip needs")
    extent.add_argument(
        "--statistics-only", action="store_true", help="no shards: all that data.encode=on_the_fly needs"
    )
    add("--overwrite", action="store_true", help="replace what the folder holds")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)

    from biglearn_vae.images import encoded_images, open_index
    from biglearn_vae.trained import read_patch_autoencoder
    from data.prepare.at_once import prepare_at_once
    from trainer.encoding import encode_images  # slow to import: only now, so that --help and mistakes answer at once
    from trainer.ranks.world import joined_world

    stage_1 = Path(options.patch_autoencoder)
    with joined_world(options.device) as world:
        show_warnings(world.rank)
        with world.agreed():
            autoencoder = read_patch_autoencoder(stage_1)
            data = _images(options)
            if world.is_main and data.source == TARS:
                prepare_at_once(data)
        with world.agreed():
            index = open_index(data) if data.source == TARS else load_index(data.shards)
        out = options.out or data.latents
        summary = encode_images(
            data,
            index,
            out,
            autoencoder,
            world,
            command=partial(
                encode_command,
                out,
                *["--flip"] * options.flip,
                *["--statistics-only"] * options.statistics_only,
                images=encoded_images(data),
                patch_autoencoder=stage_1,
            ),
            flip=options.flip,
            overwrite=options.overwrite,
            statistics_only=options.statistics_only,
        )
        if world.is_main:
            print(summary)
    return 0


def _images(options: argparse.Namespace) -> "DataConfig":
    """What is to be encoded. UserError where options do not belong together."""
    from data.read.config import DataConfig  # slow to import, as above
    from data.values import checked

    of_tars = {"image_size": options.image_size, "index": options.index}
    of_tars |= {"test_shards": options.test_shards, "label_field": options.label}
    cache = {"cache": options.cache, "cache_bytes": options.cache_bytes}
    named = {"shards": options.images, "patch_size": 1}  # the tokens are what is made
    named |= {key: value for key, value in (of_tars | cache).items() if value is not None}
    if names_tars(options.images):
        if not options.image_size:
            raise UserError("tar files hold images of any size: give --image-size, as data.image_size of the training")
        return checked({"source": TARS, **named}, DataConfig, "the options")
    require_folder_path(options.images)
    if any(value is not None for value in of_tars.values()):
        raise UserError(f"{options.images} is a folder of shards: --image-size, --index, ... belong to tar files")
    index = read_index(options.images)
    if index.codes:
        raise UserError(f"{options.images} holds codes already: give the folder of the images with --images")
    return checked({"source": index.source, "image_size": index.image_shape[0], **named}, DataConfig, "the options")


if __name__ == "__main__":
    run(main)
