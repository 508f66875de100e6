"""Draw the figures of the paper from a trained run, one PNG a figure.

3, 6-8: inference with incomplete data and in-painting, few images and more. 9: interpolation of codes. 10: encoding of
combined parts. 11, 12: what a change of z, of x_S does. 13: loss and training time of two runs. 14: all capabilities.
"""

import argparse
import io
import sys
from functools import partial
from pathlib import Path

try:
    from launch.commands.cli import Parser, find_device, run, seed, show_warnings, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError
from data.files import make_folder, write_aside

NUMBERS = ("3", "6", "7", "8", "9", "10", "11", "12", "13", "14")

EXAMPLES = """\
examples:
  python launch/figures.py --run runs/digits_8x8-biglearn_u --against runs/digits_8x8-vae
  python launch/figures.py --run my-export --figures 3 9 --images 5 --out my-figures

Figures 2 and 4 stand on the pages of launch/evaluate.py. 6, 7 and 8 are one picture, figure-6-8.png. Figure 13 needs
two runs. A joint VAE as --run has figures 9 and 13 alone.
--debug shows the traceback of an error.
"""


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--run", required=True, metavar="PATH", help="a run's directory; for all but 13 also a checkpoint or an export")
    add("--against", metavar="PATH", help="another run's directory, for figure 13: that of the joint VAE")
    add("--figures", nargs="+", choices=NUMBERS, metavar="N", help=f"of {', '.join(NUMBERS)}; default: all that can be")
    add("--out", metavar="DIR", help="default: reports/figures in the run's directory")
    add("--shards", metavar="DIR", help="the folder of the data set; default: that of the training")
    add("--seed", type=seed, default=0, help="of all draws; default: %(default)s")
    add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    add(
        "--images",
        type=whole_number,
        metavar="N",
        help="test images of each figure; default: 3 to 12, as fits the figure, or all there are",
    )
    return parser


def _chosen(options: argparse.Namespace, impossible: dict[str, str]) -> list[str]:
    """The names of the figures to draw. What is impossible is left out with a word, or refused if it was asked for."""
    asked = dict.fromkeys("6-8" if number in "678" else number for number in options.figures or NUMBERS)
    for why in dict.fromkeys(impossible.values()):
        names = ", ".join(name for name in asked if impossible.get(name) == why)
        if names and options.figures:
            raise UserError(f"figure {names} cannot be drawn: {why}")
        if names:
            print(f"left out: figure {names}, because {why}")
    return [name for name in asked if name not in impossible]


def _write(picture, path: Path) -> None:
    content = io.BytesIO()
    picture.save(content, "png")
    try:
        make_folder(path.parent)
        write_aside(path, content.getvalue())
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror}): choose another --out"
        ) from None


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    show_warnings(rank=0)

    # Slow to import: only now, so that --help and mistakes answer at once.
    from biglearn_vae.capabilities import BigLearnVAE
    from biglearn_vae.find_images import open_images
    from biglearn_vae.images import open_stream
    from biglearn_vae.pictures import read_test_images
    from evaluation.figures import FIGURES, draw_figure, rendered, training_curves
    from trainer.metrics.progress import progress
    from trainer.run_directory import RunDirectory

    vae = BigLearnVAE.load(options.run, find_device(options.device))
    vae.progress = partial(progress, name="this figure", shown=True)
    run_directory = RunDirectory(options.run)
    is_run = run_directory.config.exists()
    if not options.out and not is_run:
        raise UserError(f"{options.run} is no run's directory, where the pictures would go: give --out DIR")
    out = Path(options.out) if options.out else run_directory.reports / "figures"

    impossible = {}
    if not vae.method.is_conditional:
        why = "the joint VAE has no p(z | x_S) for parts of an image: give the run of a BigLearn-VAE"
        impossible = {name: why for name, figure in FIGURES.items() if figure.needs_parts}
    if not is_run or not options.against:
        impossible["13"] = "it compares two runs: give the directories of both, with --run and --against"
    names = _chosen(options, impossible)
    if names != ["13"]:
        test = open_stream(*open_images(vae.description, options.run, options.shards), "test", seed=None)
    for name in progress(names, "figures", shown=True):
        if name == "13":
            picture = rendered(training_curves([Path(options.run), Path(options.against)], options.shards))
        else:
            _, images_BHWC = read_test_images(test, options.images or min(FIGURES[name].images, test.images))
            picture = draw_figure(name, vae, images_BHWC, options.seed)
        _write(picture, out / f"figure-{name}.png")
    print(f"wrote {', '.join(f'figure-{name}.png' for name in names)} into {out}")
    return 0


if __name__ == "__main__":
    run(main)
