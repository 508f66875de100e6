"""How well an order shuffles: how far batches are from what a permutation would have, where neighbours are alike.

Images are sorted by class, as files often are. For each order: the standard deviation of the number of images of a
class in a batch, over that of a permutation; and the correlation of the places of neighbours in the sequence.

examples:
  python benchmarks/shuffle.py
  python benchmarks/shuffle.py --images 1000000 --classes 1000 --lanes 64 --block 32 --window 2
"""

import argparse
import sys

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import torch

from data.order.order import Order, Permuted, Woven
from data.order.weave import Weave

BATCHES = 200
WEAVES = (Weave(64, 32, 2), Weave(128, 32, 2), Weave(128, 16, 4), Weave(), Weave(256, 16, 4), Weave(256, 8, 4))


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)
    parser.add_argument("--images", type=whole_number, default=400_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--classes", type=whole_number, default=10, metavar="N", help="default: %(default)s")
    for name in ("lanes", "block", "window"):
        parser.add_argument(f"--{name}", type=whole_number, metavar="N", help="of one more weave; all three or none")
    return parser.parse_args(arguments)


def spread(order: Order, images: int, classes: int, batch: int) -> float:
    """Standard deviation of the images of a class in a batch."""
    place_N = order.place(torch.arange(min(BATCHES, images // batch) * batch))
    label_BN = (place_N * classes // images).view(-1, batch)
    return torch.stack([label_B.bincount(minlength=classes) for label_B in label_BN]).float().std().item()


def correlation(order: Order, images: int) -> float:
    """Of the places of neighbours in the sequence."""
    place_N = order.place(torch.arange(min(images, 200_000))).double() / images - 0.5
    return (place_N[1:] * place_N[:-1]).mean().item() / place_N.square().mean().item()


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    given = [options.lanes, options.block, options.window]
    weaves = [*WEAVES, *([Weave(*given)] if all(given) else [])]
    permuted, batches = Permuted(options.images, 0), (128, 512, 2048)
    by_chance = [spread(permuted, options.images, options.classes, batch) for batch in batches]
    print(
        "| lanes × window × block | images | " + " | ".join(f"batch {batch}" for batch in batches) + " | neighbours |"
    )
    print("|---|---|---|---|---|---|")
    print(f"| permuted | {options.images:,} | 1 | 1 | 1 | {correlation(permuted, options.images):.3f} |")
    for weave in weaves:
        order = Woven(options.images, 0, weave)
        found = [spread(order, options.images, options.classes, batch) for batch in batches]
        ratios = " | ".join(f"{own / other:.2f}" for own, other in zip(found, by_chance, strict=True))
        name = f"{weave.lanes} × {weave.window} × {weave.block}"
        print(f"| {name} | {weave.images:,} | {ratios} | {correlation(order, options.images):.3f} |")
    return 0


if __name__ == "__main__":
    run(main)
