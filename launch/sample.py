"""Use a trained model: generate, encode, reconstruct, infer, in-paint, interpolate, vary, and bound likelihoods.

A command writes its pictures as one PNG sheet, of the first images, and everything as arrays (NAME.npz) into --out.
"""

import argparse
import math
import sys

try:
    from launch.commands.cli import Parser, run, seed, show_warnings, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

KINDS = ("random", "block", "half", "stroke")

EXAMPLES = """\
examples:
  python launch/sample.py generate --model runs/digits_8x8-biglearn_u --count 24
  python launch/sample.py inpaint --model runs/digits_8x8-biglearn_u --test 12 --hide random --s-ratio 0.3 --draws 3
  python launch/sample.py inpaint --model my-export --images photos/ broken.png --mask hole.png

NAME --help has an example of each. What is missing in an image: alpha 0 in a PNG, NaN in a .npy array, black, 0 or
alpha 0 in --mask, or what --hide takes away. --debug shows the traceback of an error.
"""


def _parser() -> Parser:
    parser = Parser(
        prog="python launch/sample.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")

    def command(name: str, what: str, example: str, images: bool = True) -> Parser:
        added = commands.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog=f"example:\n  python launch/sample.py {name} --model runs/digits_8x8-biglearn_u {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = added.add_argument
        add("--model", required=True, metavar="PATH", help="a run's directory, a checkpoint or an export")
        add("--out", metavar="DIR", default=f"samples/{name}", help="default: %(default)s")
        add("--seed", type=seed, default=0, help="of all draws; default: %(default)s")
        add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
        add("--batch-size", type=whole_number, default=256, metavar="N", help="images at once; default: %(default)s")
        add("--columns", type=whole_number, default=12, metavar="N", help="images in the sheet; default: %(default)s")
        if images:
            add("--images", nargs="+", metavar="PATH", help="image files, folders of them, .npy arrays")
            add("--test", type=whole_number, metavar="N", help="instead: N test images of the model's data set")
            add("--shards", metavar="DIR", help="of --test: the folder of the data set; default: as in training")
            add("--mask", metavar="FILE", help="an image or .npy array, black, 0 or transparent where nothing is known")
            add("--hide", choices=KINDS, help="take patches away, in this shape")
            add(
                "--s-ratio",
                type=_share,
                default=0.5,
                metavar="R",
                help="share that --hide leaves; default: %(default)s",
            )
            rule = "partly known patches count as missing (all) or as known (any); default: %(default)s"
            add("--observed", choices=("all", "any"), default="any" if name == "strokes" else "all", help=rule)
        return added

    draws = {"type": whole_number, "default": 3, "metavar": "K", "help": "for each image; default: %(default)s"}
    command("generate", "new images: z ~ p(z), then p(x | z)", "--count 24", images=False).add_argument(
        "--count", type=whole_number, default=24, metavar="N", help="default: %(default)s"
    )
    command("encode", "p(z | x_S): mean and log variance of the code", "--test 100 --hide random").add_argument(
        "--merge", nargs="+", metavar="PATH", help="other parts of the same images: p(z | x_S1 and x_S2)"
    )
    command("decode", "p(x | z), or p(x_T | z, x_S) with images", "--codes samples/encode/encode.npz").add_argument(
        "--codes", required=True, metavar="FILE", help="what encode wrote (its means are decoded), or a .npy of z"
    )
    command("reconstruct", "whole images, through the mean of p(z | x)", "--test 12")
    command("infer", "incomplete images to z, and from z alone to whole images", "--test 12 --hide half").add_argument(
        "--draws", **draws
    )
    command("inpaint", "several completions of incomplete images", "--test 12 --hide block").add_argument(
        "--draws", **draws
    )
    command("strokes", "images that go on from strokes", "--images strokes.png --draws 6").add_argument(
        "--draws", **draws
    )
    gibbs = command("pseudo-gibbs", "in-painting by a chain, all that a joint VAE can do", "--test 12 --hide half")
    gibbs.add_argument("--draws", **draws)
    gibbs.add_argument("--burn-in", type=whole_number, default=50, metavar="N", help="default: %(default)s")
    gibbs.add_argument(
        "--steps", type=whole_number, default=10, metavar="N", help="between draws; default: %(default)s"
    )
    over = command("interpolate", "from images to others, along lines between their codes", "--test 12")
    over.add_argument("--others", nargs="+", metavar="PATH", help="default: the second half of the images")
    over.add_argument("--steps", type=whole_number, default=8, metavar="N", help="default: %(default)s")
    vary = command("vary-z", "what one dimension of z changes, x_S given", "--test 8 --hide random --dimensions 0 1 2")
    vary.add_argument("--dimensions", type=int, nargs="+", metavar="D", help="default: the first 8")
    vary.add_argument("--delta", type=_change, default=5.0, help="what is added; default: %(default)s")
    change = command("vary-x", "what a change of the known pixels does to z", "--test 8 --delta 0.2")
    change.add_argument("--delta", type=_change, default=0.1, help="added to each known pixel; default: %(default)s")
    change.add_argument("--changed", nargs="+", metavar="PATH", help="instead: the same images, changed")
    command("bound", "bounds of log p(x), or of log p(x_T | x_S) with --hide", "--test 100").add_argument(
        "--samples", type=whole_number, default=64, metavar="K", help="importance weights; default: %(default)s"
    )
    return parser


def _change(text: str) -> float:
    return _number(text, -1e6, 1e6)  # far beyond any pixel and any code


def _share(text: str) -> float:
    return _number(text, 0, 1)


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text.strip()} is not a number from {least:,} to {most:,}")
    return value


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    show_warnings(rank=0)

    from launch.commands.sample_commands import (
        sample,  # slow to import: only now, so that --help and mistakes answer at once
    )

    return sample(options)


if __name__ == "__main__":
    run(main)
