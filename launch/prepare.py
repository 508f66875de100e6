"""Write a data set as shards, verify a folder of shards, or index the tar files of other tools."""

import argparse
import logging
import os
import sys

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError
from data.order.weave import Weave
from data.prepare.verify import verify
from data.prepare.writing import default_workers, prepare
from data.read.index import read_index
from data.sources import SOURCES
from data.storage.addresses import TARS, require_addresses

EXAMPLES = """\
examples:
  python launch/prepare.py digits
  python launch/prepare.py mnist --source ~/torchvision --out datasets/mnist --workers 4
  python launch/prepare.py celeba --source ~/celeba --out datasets/celeba
  python launch/prepare.py folder --source ~/pictures --out datasets/pictures --image-size 64
  python launch/prepare.py index 's3://bucket/faces/{00000..00099}.tar'
  python launch/prepare.py verify datasets/mnist

An interrupted run goes on where it was when it is started again. --debug shows the traceback of an error.
"""


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    for source in SOURCES.values():
        counts = " and ".join(f"{count:,} {split}" for split, count in source.splits.items())
        what = f"its {counts} images" if counts else "the images of any folder"
        add = commands.add_parser(source.name, help=f"write {what} as shards").add_argument
        if not source.embedded:
            default = "required" if source.image_files else "default: download them"
            add("--source", metavar="DIR", help=f"folder of the original files; {default}")
        add("--out", metavar="DIR", default=f"datasets/{source.name}", help="default: %(default)s")
        add(
            "--image-size",
            metavar="N",
            type=whole_number,
            default=source.image_size,
            help="pixels; default: %(default)s",
        )
        default = "1" if source.embedded else "as many as there are cores, and memory for"
        add("--workers", metavar="N", type=whole_number, help=f"processes; default: {default}")
        if source.image_files:
            accepted = "damaged images to replace by sound ones before giving up; default: %(default)s"
            add("--max-damaged", metavar="N", type=_limit, default=100, help=accepted)
        add("--overwrite", action="store_true", help="replace what the folder holds")
    command = commands.add_parser("verify", help="read all shards of a folder and check them")
    command.add_argument("folder", metavar="DIR")
    what = "find the images in tar files of other tools (WebDataset, img2dataset)"
    _add_index(commands.add_parser("index", help=what))
    return parser


def _add_index(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("shards", nargs="+", metavar="SHARDS", help="their addresses or paths, with {00000..00099} or *")
    add("--test-shards", metavar="SHARDS", help="those to test with; default: one image of 50 is kept back")
    add("--label", metavar="FIELD", help="field of the JSON of an image that is its label; default: its cls, or 0")
    add("--out", metavar="DIR", help="folder or address of the index; default: datasets/webdataset-..., by SHARDS")
    for name, metavar, what in (
        ("lanes", "K", "sequences that the order is woven from, see docs/data.md"),
        ("block", "N", "neighbouring images that are read at once"),
        ("window", "N", "blocks of a lane among which images are shuffled"),
    ):
        default = getattr(Weave, name)
        add(f"--{name}", metavar=metavar, type=whole_number, default=default, help=f"{what}; default: %(default)s")
    add(
        "--share",
        metavar="I/N",
        type=_share,
        help="every N-th file from the I-th on; then all without it",
    )
    add("--workers", metavar="N", type=whole_number, help="processes; default: as many as there are cores")
    accepted = "files to leave out, because they are no tar of images; default: %(default)s"
    add("--max-damaged", metavar="N", type=_limit, default=0, help=accepted)
    add("--overwrite", action="store_true", help="look through all files again")


def _share(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is no share, as 0/4 to 3/4 are")
    return int(number), int(count)


def _index(options: argparse.Namespace) -> int:
    from data.read.config import DataConfig  # imports torch: only now, so that mistakes answer at once
    from data.tars.indexing import index_tars
    from data.values import checked

    shards = "::".join(options.shards)
    for each in filter(None, (shards, options.test_shards)):
        require_addresses(each)
    asked = {"test_shards": options.test_shards, "label_field": options.label}
    named = {"source": TARS, "shards": shards, "index": options.out, **asked}
    data = checked({key: value for key, value in named.items() if value is not None}, DataConfig, "the options")
    index_tars(
        shards,
        data.index_folder,
        **asked,
        weave=Weave(options.lanes, options.block, options.window),
        workers=options.workers or len(os.sched_getaffinity(0)),
        share=options.share,
        max_damaged=options.max_damaged,
        overwrite=options.overwrite,
    )
    return 0


def _limit(text: str) -> int:
    return 0 if text == "0" else whole_number(text)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.command == "verify":
        return _verify(options.folder)
    if options.command == "index":
        return _index(options)
    prepare(
        options.command,
        options.out,
        image_size=options.image_size,
        source_dir=getattr(options, "source", None),
        workers=options.workers or default_workers(SOURCES[options.command], options.image_size),
        overwrite=options.overwrite,
        max_damaged=getattr(options, "max_damaged", 0),
    )
    return 0


def _verify(folder: str) -> int:
    """One line for each fault and exit code 1, or a summary and 0."""
    faults = verify(folder, progress=True)
    if not faults:
        faults = _codec_faults(folder)
    for fault in faults:
        print(fault)
    if faults:
        return 1
    index = read_index(folder)
    counts = " and ".join(f"{count:,} {split}" for split, count in index.images.items())
    replaced = f"; {len(index.replaced)} stand in for damaged ones" if index.replaced else ""
    print(f"{folder} is whole: {counts} images in {len(index.shards)} shards, {index.bytes / 1e6:.1f} MB{replaced}")
    return 0


def _codec_faults(folder: str) -> list[str]:
    """Of what stands beside shards of codes."""
    index = read_index(folder)
    if not index.codes:
        return []
    from model.patch_autoencoder.codec import CODEC, read_codec  # imports torch: only where it is needed

    path = f"{folder}/{CODEC}"
    try:
        codec = read_codec(path)
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    except UserError as error:
        return [str(error)]
    if (codec.patch_autoencoder, codec.images) != (index.codes.patch_autoencoder_sha256, index.checksum):
        return [f"{path}: is of another PatchAE, or of other images, than the shards"]
    return []


if __name__ == "__main__":
    run(main)
