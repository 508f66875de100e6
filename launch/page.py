"""Open a page in the browser: erase a part of an image, draw, and see several completions by a trained model.

Beside them stand what the mean image, the nearest neighbour and the closed-form Gaussian of the training images would
do and, where its run is given too, a joint VAE. docs/page.md shows it.
"""

import logging
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from launch.commands.cli import Parser, find_device, run, show_warnings, whole_number
    from launch.commands.http import LOOPBACK, add_options, import_service, load_models, named_paths, serve
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

if TYPE_CHECKING:
    from biglearn_vae.capabilities import BigLearnVAE
    from data.read.stream import Stream
    from serving.served import Fillers

log = logging.getLogger("data")

EXAMPLES = """\
examples:
  python launch/page.py --model runs/digits_8x8-biglearn_u
  python launch/page.py --model runs/digits_8x8-biglearn_u --model runs/digits_8x8-vae
  python launch/page.py --model faces-export --shards datasets/celeba --host 0.0.0.0

Whoever can reach --host and --port can use the page; by default that is this machine alone. Ctrl-C ends it.
"""
_BATCH_IMAGES = 64


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add_options(parser, port=7860)
    add = parser.add_argument
    add("--shards", metavar="DIR", help="where the images of the models lie now; default: where they were trained")
    add("--images", type=whole_number, default=24, metavar="N", help="test images to choose from; default: %(default)s")
    options = parser.parse_args(arguments)
    show_warnings(rank=0)
    paths = named_paths(options.model)
    Service = import_service()
    from serving.page import add_page

    models = load_models(paths, find_device(options.device), _BATCH_IMAGES)
    if not any(vae.method.is_conditional for vae in models.values()):
        raise UserError("a joint VAE knows no parts of images: give a BigLearn-VAE with --model, too")
    splits = {name: found for name, vae in models.items() if (found := _splits(vae, paths[name], options.shards))}
    app = Service(models, batch_images=_BATCH_IMAGES, fillers=_learn_fillers(models, splits)).app()
    add_page(
        app,
        {name: _test_images(test, options.images) for name, (_, _, test) in splits.items()},
        hosts=None if options.host not in LOOPBACK else LOOPBACK,
    )
    serve(app, options.host, options.port, lambda url: f"open {url} in a browser")
    return 0


# Checksum of the images, and the streams of those of the training and of the test.
_Splits = tuple[str, "Stream", "Stream"]


def _splits(vae: "BigLearnVAE", path: Path, shards: str | None) -> _Splits | None:
    """None, and a warning, where they are not to be had."""
    from biglearn_vae.find_images import open_images
    from biglearn_vae.images import open_stream

    try:
        data, index = open_images(vae.description, path, shards)
        return index.checksum, *(open_stream(data, index, split, seed=None) for split in ("train", "test"))
    except UserError as error:
        if shards:
            raise
        log.warning("%s: no test images to choose from, and no baselines beside it (%s)", path, error)
        return None


def _test_images(test: "Stream", count: int) -> list:
    from biglearn_vae.pictures import read_test_images

    _, images_NHWC = read_test_images(test, min(count, test.images))
    return list(images_NHWC)


def _learn_fillers(models: "Mapping[str, BigLearnVAE]", splits: Mapping[str, _Splits]) -> "dict[str, Future[Fillers]]":
    """Of each model with images: its own ways to fill but for the draws, which the page asks for, and the baselines.

    They come one after another, from a thread, as reading the training images takes its time.
    """
    from evaluation.assessment import Extent, references_of
    from evaluation.inpainting import DRAWN, References, baselines, fillers_of

    found: dict[str, Future[Fillers]] = {name: Future() for name in splits}

    def learn() -> None:
        known: dict[tuple[str, int], References] = {}  # what models of the same images share
        for name, (checksum, train, _) in splits.items():
            vae = models[name]
            patch_size = vae.description.data.patch_size
            try:
                if (checksum, patch_size) not in known:
                    known[checksum, patch_size] = references_of(train, Extent(), patch_size)
                references = known[checksum, patch_size]
                own = fillers_of(vae, references.mean_HWC, draws=1, seed=0)
                own.pop(DRAWN, None)
                others = baselines(references) if vae.method.is_conditional else {}
                found[name].set_result({**own, **others})
            except Exception as error:
                log.exception("the baselines of %s", name)
                found[name].set_exception(UserError(f"the baselines could not be learned: {error}"))

    threading.Thread(target=learn, name="baselines", daemon=True).start()
    return found


if __name__ == "__main__":
    run(main)
