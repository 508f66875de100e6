"""Write a data set as shards, or verify a folder of shards."""

import logging
import sys
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError
from data.prepare.verify import verify
from data.read.index import read_index
from data.sources import SOURCES

EXAMPLES = """\
examples:
  python launch/prepare.py digits
  python launch/prepare.py mnist --source ~/torchvision --out datasets/mnist --workers 4
  python launch/prepare.py celeba --source ~/celeba --out datasets/celeba
  python launch/prepare.py folder --source ~/pictures --out datasets/pictures --image-size 64
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
    return parser


def _limit(text: str) -> int:
    return 0 if text == "0" else whole_number(text)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.command == "verify":
        return _verify(options.folder)
    from data.prepare.writing import (  # slow to import: only now, so that mistakes answer at once
        default_workers,
        prepare,
    )

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
    from model.patch_autoencoder.codec import CODEC, read_codec  # slow to import: only where it is needed

    path = Path(folder) / CODEC
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
