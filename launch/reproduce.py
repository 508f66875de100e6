"""Check the claims of the paper: a grid of runs is trained and measured, cell by cell, and a page says what holds.

Each cell is a small JSON file below docs/reproduction. It can be stopped at any time and goes on where it was; several
processes may work on one grid, each on cells of its own. The page, docs/reproduction.md, is written from the cells.
"""

import argparse
import sys
import time
from pathlib import Path

try:
    from launch.commands.cli import REQUEUE, Parser, run, say, show_warnings, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError
from trainer.ranks.stop import StopRequest

ROOT = Path(__file__).resolve().parents[1]
DOCS, GRIDS = ROOT / "docs", ROOT / "configs/reproduction"

EXAMPLES = """\
examples:
  python launch/reproduce.py --grid configs/reproduction/quick.yaml --minutes 120
  python launch/reproduce.py --grid configs/reproduction/quick.yaml --status
  python launch/reproduce.py --grid configs/reproduction/table3.yaml --add cells   # those of another machine
  python launch/reproduce.py --check
"""


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--grid", type=Path, metavar="FILE", help="a file of configs/reproduction/")
    add("--minutes", type=whole_number, metavar="N", help="begin no cell after so many; default: until all are made")
    add("--cells", type=Path, metavar="DIR", help="of the cells of this grid; default: docs/reproduction/GRID")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="say what is made and how long the rest takes")
    what.add_argument("--add", type=Path, metavar="DIR", help="take cells that were made elsewhere, after all checks")
    what.add_argument("--page", action="store_true", help="write docs/reproduction.md and its pictures anew")
    what.add_argument("--check", action="store_true", help="say whether page and cells agree")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("overrides", nargs="*", metavar="key=value", help="of every run, as data.shards=/data/mnist")
    options = parser.parse_intermixed_args(arguments)
    if options.check or options.page:
        if options.grid or options.cells or options.overrides:
            raise UserError("the page is of all grids that are shipped: leave out --grid, --cells and overrides")
        return page(options)
    if not options.grid:
        raise UserError("which grid? Give --grid FILE, or --check")
    stop = StopRequest().listen()  # before the slow imports: a signal never finds a cell without its handler

    from reproduction.work import Work

    cells = options.cells or DOCS / "reproduction" / options.grid.stem
    work = Work.of(options.grid, cells, options.overrides)
    if options.add:
        names = work.add(options.add)
        print(
            f"{len(names)} cells taken from {options.add}" if names else f"{options.add} has no cell that was missing"
        )
    elif options.status:
        print(work.status())
    else:
        return make(work, options, stop)
    return 0


def page(options: argparse.Namespace) -> int:
    """Write the page from all grids that are shipped, or compare the two."""
    from reproduction.page import faults, write
    from reproduction.work import Work

    works = [Work.of(path, DOCS / "reproduction" / path.stem, []) for path in sorted(GRIDS.glob("*.yaml"))]
    if options.check:
        if found := faults(works, DOCS):
            raise UserError(f"{'; '.join(found)}: write it anew with `python launch/reproduce.py --page`")
        print("docs/reproduction.md and its pictures are what the cells say")
    else:
        for path in write(works, DOCS):
            print(f"wrote {path}")
    return 0


def make(work, options: argparse.Namespace, stop: StopRequest) -> int:
    """Cells, one after the other, until all are there, time is over, or somebody stops it."""
    from launch.commands.machine import machine
    from trainer.ranks.world import joined_world

    print(work.status())
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    with joined_world(options.device) as world:
        show_warnings(world.rank)
        where = machine("torch", device=world.device.type)
        for name, made in work.make(world, stop, where):
            if made is None:
                say(f"stopped by {stop.signal_name} in {name}: the same command goes on there")
                return REQUEUE
            print(f"{name}: {f'failed: {made.failed}' if made.failed else 'made'}, {work.left()} cells are left")
            if time.monotonic() > end:
                break
    print(work.status())
    if options.cells is None:
        print("write the page anew: python launch/reproduce.py --page")
    return 0


if __name__ == "__main__":
    run(main)
