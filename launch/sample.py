"""Use a trained model: generate, encode, reconstruct, infer, in-paint, interpolate, vary, and bound likelihoods.

A command writes its pictures as one PNG sheet, of the first images, and everything as arrays (NAME.npz) into --out.
"""

import sys
from functools import partial

try:
    from launch.commands.cli import Parser, run, seed, show_warnings, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from launch.commands.sampling import COMMANDS, number, sample

SHAPES = ("random", "block", "half", "stroke")  # model.masks.SHAPES, without torch

EXAMPLES = """\
examples:
  python launch/sample.py generate --model runs/digits_8x8-biglearn_u --count 24
  python launch/sample.py inpaint --model runs/digits_8x8-biglearn_u --test 12 --hide random --s-ratio 0.3 --draws 3
  python launch/sample.py inpaint --model my-export --images photos/ broken.png --mask hole.png

NAME --help has an example of each. What is missing in an image: alpha 0 in a PNG, NaN in a .npy array, black, 0 or
alpha 0 in --mask, or what --hide takes away. --debug shows the traceback of an error.
"""


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.what,
            description=command.what[0].upper() + command.what[1:] + ".",
            epilog=f"example:\n  python launch/sample.py {name} --model runs/digits_8x8-biglearn_u {command.example}",
        )
        add = added.add_argument
        add("--model", required=True, metavar="PATH", help="a run's directory, a checkpoint or an export")
        add("--out", metavar="DIR", default=f"samples/{name}", help="default: %(default)s")
        add("--seed", type=seed, default=0, help="of all draws; default: %(default)s")
        add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
        add("--batch-size", type=whole_number, default=256, metavar="N", help="images at once; default: %(default)s")
        add("--columns", type=whole_number, default=12, metavar="N", help="images in the sheet; default: %(default)s")
        if command.images != "none":
            _add_images(added, command.observed)
        for option, how in command.options:
            add(option, **how)
    return parser


def _add_images(parser: Parser, observed: str) -> None:
    add = parser.add_argument
    add("--images", nargs="+", metavar="PATH", help="image files, folders of them, .npy arrays")
    add("--test", type=whole_number, metavar="N", help="instead: N test images of the model's data set")
    add("--shards", metavar="DIR", help="of --test: the folder of the data set; default: as in training")
    add("--mask", metavar="FILE", help="an image or .npy array, black, 0 or transparent where nothing is known")
    add("--hide", choices=SHAPES, help="take patches away, in this shape")
    share = partial(number, least=0, most=1)
    add("--s-ratio", type=share, default=0.5, metavar="R", help="share that --hide leaves; default: %(default)s")
    rule = "partly known patches count as missing (all) or as known (any); default: %(default)s"
    add("--observed", choices=("all", "any"), default=observed, help=rule)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    show_warnings(rank=0)
    return sample(options.command, options)


if __name__ == "__main__":
    run(main)
