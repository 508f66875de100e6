"""Measure a trained model on the test images, or put evaluations side by side.

Writes evaluation.json and evaluation.html into the run's reports: ELBOs, importance-weighted bounds, in-painting beside
its baselines (among them the closed-form Gaussian) for four standard masks and four kinds of masks, diversity, linear
probes, active units. Works under torchrun, deepspeed and accelerate launch: every process takes its share.
"""

import argparse
import io
import json
import sys
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, seed, show_warnings, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

NAMES = {"test": "evaluation", "holdout": "evaluation-holdout"}  # of the report on a split, in a run's reports

EXAMPLES = """\
examples:
  python launch/evaluate.py --run runs/digits_8x8-biglearn_u
  torchrun --nproc-per-node 2 -- launch/evaluate.py --run runs/mnist_case1-biglearn_u --images 2000
  python launch/evaluate.py --run runs/digits_8x8-biglearn_u --filling-images 100 --inpainting-images 50  # quick
  python launch/evaluate.py --compare runs/digits_8x8-biglearn_u runs/digits_8x8-vae --out comparison
"""


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--run", metavar="DIR", help="a run's directory, a checkpoint or an export")
    add("--compare", nargs="+", metavar="DIR", help="instead: runs that were evaluated, side by side")
    out = "default: reports/ in the run's directory; comparison/ for --compare"
    add("--out", metavar="DIR", help=out)
    add("--shards", metavar="DIR", help="the folder of the data set; default: that of the training")
    of_split = "holdout: instead of the test images those that the run held out (data.holdout); default: %(default)s"
    add("--split", choices=NAMES, default="test", help=of_split)
    add("--images", type=whole_number, metavar="N", help="test images of the ELBOs; default: all")
    add("--bound-images", type=whole_number, metavar="N", default=200, help="default: %(default)s")
    add("--bound-samples", type=whole_number, metavar="K", default=64, help="importance weights; default: %(default)s")
    add("--inpainting-images", type=whole_number, metavar="N", default=500, help="default: %(default)s")
    filled = "test images of the four standard masks; default: %(default)s"
    add("--filling-images", type=whole_number, metavar="N", default=1000, help=filled)
    add("--draws", type=whole_number, metavar="K", default=4, help="completions of an image; default: %(default)s")
    probed = "training images of the linear probes; default: %(default)s"
    add("--probe-images", type=whole_number, metavar="N", default=10_000, help=probed)
    add("--seed", type=seed, default=0, help="of masks and draws; default: %(default)s")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)
    if bool(options.run) == bool(options.compare):
        raise UserError("what is to be measured? Give --run DIR, or --compare DIR DIR ...")
    if options.compare:
        folders, out = [Path(path) for path in options.compare], Path(options.out or "comparison")
        return compare(folders, out, options.shards, NAMES[options.split])
    return evaluate(options)


def evaluate(options: argparse.Namespace) -> int:
    from biglearn_vae.capabilities import BigLearnVAE
    from biglearn_vae.find_images import open_images
    from evaluation.assessment import Extent, assess
    from evaluation.report import page, words
    from trainer.ranks.world import joined_world
    from trainer.run_directory import RunDirectory

    extent = Extent(
        split=options.split,
        images=options.images,
        bound_images=options.bound_images,
        bound_samples=options.bound_samples,
        inpainting_images=options.inpainting_images,
        draws=options.draws,
        filling_images=options.filling_images,
        probe_images=options.probe_images,
        seed=options.seed,
    )
    folder, directory = Path(options.run), RunDirectory(options.run)
    out = Path(options.out) if options.out else directory.reports
    with joined_world(options.device) as world:
        show_warnings(world.rank)
        with world.agreed():
            vae = BigLearnVAE.load(folder, world.device)
            if not options.out and not directory.config.exists():
                raise UserError(f"{folder} is no run's directory, where the report would go: give --out DIR")
            data, index = open_images(vae.description, folder, options.shards)
        report, fillings = assess(vae, data, index, world, extent)
        with world.agreed():
            if world.is_main:
                picture = directory.picture(report["images"])
                pictures = {"What it can do": picture.read_bytes()} if picture.exists() else {}
                pictures["What the model and the Gaussian make of four standard masks"] = _png(fillings)
                reports = {folder.resolve().name: report}
                content = page(f"Evaluation of {folder.resolve().name}", reports, pictures)
                name = NAMES[options.split]
                _write(out, {f"{name}.json": json.dumps(report, indent=1) + "\n", f"{name}.html": content})
                print(words(reports))
                print(f"wrote {out / name}.json and {out / name}.html")
    return 0


def compare(folders: list[Path], out: Path, shards: str | None, evaluation: str) -> int:
    from evaluation.figures import rendered, training_curves
    from evaluation.report import page, read_report, words
    from trainer.run_directory import RunDirectory

    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("--compare has a run twice: name each run once")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    found = zip(names, folders, strict=True)
    reports = {name: read_report(folder / f"reports/{evaluation}.json") for name, folder in found}
    pictures = {}
    are_runs = all(RunDirectory(folder).config.exists() for folder in folders)  # an export has no curves
    if are_runs and len({report["source"] for report in reports.values()}) == 1:
        curves = rendered(training_curves(folders, shards))
        pictures = {"Loss and training time (as Fig. 13 of the paper)": _png(curves)}
    _write(out, {"comparison.html": page("Comparison of runs", reports, pictures)})
    print(words(reports))
    print(f"wrote {out / 'comparison.html'}")
    return 0


def _png(picture) -> bytes:
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def _write(out: Path, files: dict[str, str]) -> None:
    from data.files import make_folder, write_aside

    try:
        make_folder(out)
        for name, content in files.items():
            write_aside(out / name, content.encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written ({error.strerror}): choose another --out") from None


if __name__ == "__main__":
    run(main)
