"""Tar files of JPEG images: how fast they are read from where, and how large a data set may be.

Two parts. Each form reads the same files, in one process and with one thread that decodes, into tokens; the time of an
epoch is given relative to the first form's, and all are read in turn, several times:

Stream, from the disk       data.read.stream.Stream, with data.source=webdataset and its woven order
Stream, from HTTP           the same, from a web server of this machine, nothing kept on the disk
Stream, kept on the disk    the same, after it was read once
webdataset                  webdataset.WebDataset with a buffer of as many images as the woven order has, PIL decoding
mosaicml-streaming, litdata where they are installed: the JPEG files in their own format, on the disk, PIL decoding

--scale N: an index of N images in tar files of 10,000, which are all the same file, opened in a process of its own: the
seconds until the first batch is there, and the memory that it took beside the libraries.

examples:
  python benchmarks/tars.py
  python benchmarks/tars.py --images 8192 --image-size 128 --repeats 5
  python benchmarks/tars.py --scale 100000000
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from itertools import islice
from pathlib import Path
from statistics import median

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import numpy as np
import torch
import webdataset
from PIL import Image

from data.order.weave import Weave
from data.patches import patchify
from data.read.stream import Stream, expected
from data.storage.cache import BlockCache
from data.tars.indexing import index_tars
from data.tars.manifest import Tar, TarIndex, read_manifest
from launch.commands.machine import machine
from tests.servers import serving

TAR_IMAGES = 1024
SCALE_TAR_IMAGES = 10_000
PATCH = 16


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)
    add = parser.add_argument
    add("--images", type=whole_number, default=4096, metavar="N", help="default: %(default)s")
    add("--image-size", type=whole_number, default=128, metavar="N", help="pixels; default: %(default)s")
    add("--batch-size", type=whole_number, default=128, metavar="N", help="default: %(default)s")
    add("--repeats", type=whole_number, default=3, metavar="N", help="epochs of each form; default: %(default)s")
    add("--scale", type=whole_number, metavar="N", help="the second part, with so many images")
    add("--first-batch", metavar="DIR", help="of an index: open it and read a batch, in this process")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.first_batch:
        print(json.dumps(first_batch(options.first_batch)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        (scale if options.scale else compare)(options, Path(folder))
    return 0


def write_tars(folder: Path, images: int, size: int, per_tar: int) -> None:
    """Smooth random pictures as JPEG, with labels."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=per_tar, verbose=0) as writer:
        for number in range(images):
            small = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8))
            content = BytesIO()
            small.resize((size, size), Image.Resampling.BICUBIC).save(content, "jpeg", quality=90)
            writer.write({"__key__": f"{number:08d}", "jpg": content.getvalue(), "cls": str(number % 10)})


def compare(options: argparse.Namespace, folder: Path) -> None:
    size, tars = options.image_size, folder / "tars"
    write_tars(tars, options.images, size, TAR_IMAGES)
    names = sorted(path.name for path in tars.glob("*.tar"))
    with serving(tars) as server:
        indices = {}
        for name, root in (("disk", tars), ("web", server.address)):
            shards = "::".join(f"{root}/{each}" for each in names)
            indices[name] = TarIndex(index_tars(shards, str(folder / name), progress=False), str(folder / name), size)
        caches = {"none": BlockCache(folder, 0), "kept": BlockCache(folder / "cache", 2**36)}

        def stream(index: str, cache: str) -> Callable[[int], Iterator[torch.Tensor]]:
            opened = Stream(indices[index], "", "train", patch_size=PATCH, seed=0, memory_bytes=0, cache=caches[cache])
            return lambda epoch: from_stream(opened, options.batch_size, epoch)

        forms = {
            "Stream, from the disk": stream("disk", "none"),
            "Stream, from HTTP": stream("web", "none"),
            "Stream, kept on the disk": stream("web", "kept"),
            "webdataset": lambda epoch: from_webdataset(sorted(map(str, tars.iterdir())), options, epoch),
        }
        files = [
            record["jpg"] for record in webdataset.WebDataset(sorted(map(str, tars.iterdir())), shardshuffle=False)
        ]
        for name, module, written in (
            ("mosaicml-streaming", "streaming", write_mosaic),
            ("litdata", "litdata", write_litdata),
        ):
            if find_spec(module):
                samples = written(files, folder / module)
                forms[name] = partial(from_samples, samples, options.batch_size)
        times: dict[str, list[float]] = {name: [] for name in forms}
        for repeat in range(1 + options.repeats):
            for name, form in forms.items():
                began = time.perf_counter()
                images = sum(len(x_BLD) for x_BLD in form(repeat))
                times[name].append((time.perf_counter() - began) / images)
    base = times["Stream, from the disk"][1:]
    where = machine("torch", "webdataset", "pillow", "obstore")
    print(f"{options.images:,} images of {size} pixels, on {where['hardware']}")
    print("\n| form | time, relative | images/s |\n|---|---|---|")
    for name, each in times.items():
        ratio = median(own / other for own, other in zip(each[1:], base, strict=True))
        print(f"| {name} | {ratio:.2f} | {1 / median(each[1:]):,.0f} |")


def from_stream(stream: Stream, batch_size: int, epoch: int) -> Iterator[torch.Tensor]:
    positions = torch.arange(epoch * stream.images, (epoch + 1) * stream.images).split(batch_size)
    for position_B in expected(stream, positions, depth=stream.look_ahead // batch_size):
        yield stream.read(position_B).x_BLD


def from_webdataset(tars: list[str], options: argparse.Namespace, epoch: int) -> Iterator[torch.Tensor]:
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=epoch).shuffle(Weave().images).decode("rgb8")
    for images_BHWC, _ in dataset.to_tuple("jpg", "cls").batched(options.batch_size):
        yield patchify(torch.from_numpy(images_BHWC), PATCH).float() / 255


def write_mosaic(files: list[bytes], folder: Path) -> Iterable[dict]:
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, size_limit=2**24) as writer:
        for content in files:
            writer.write({"jpg": content})
    return StreamingDataset(local=str(folder), shuffle=True, batch_size=1)


def write_litdata(files: list[bytes], folder: Path) -> Iterable[dict]:
    import litdata

    litdata.optimize(fn=_as_sample, inputs=files, output_dir=str(folder), chunk_bytes="16MB", num_workers=1)
    return litdata.StreamingDataset(str(folder), shuffle=True)


def _as_sample(content: bytes) -> dict[str, bytes]:
    return {"jpg": content}


def from_samples(samples: Iterable[dict], batch_size: int, epoch: int) -> Iterator[torch.Tensor]:
    images = (np.asarray(Image.open(BytesIO(sample["jpg"])).convert("RGB")) for sample in samples)
    while batch := list(islice(images, batch_size)):
        yield patchify(torch.from_numpy(np.stack(batch)), PATCH).float() / 255


def scale(options: argparse.Namespace, folder: Path) -> None:
    write_tars(folder / "tars", SCALE_TAR_IMAGES, 8, SCALE_TAR_IMAGES)
    manifest = index_tars(str(folder / "tars" / "00000.tar"), str(folder / "index"), progress=False)
    (folder / "links").mkdir()
    tars = []
    for number in range(-(-options.scale // SCALE_TAR_IMAGES)):
        link = folder / "links" / f"{number:06d}.tar"
        link.symlink_to(folder / "tars" / "00000.tar")
        tars.append(Tar(**{**manifest.tars[0].model_dump(), "address": str(link)}))
    many = manifest.model_copy(update={"tars": tuple(tars)})
    (folder / "index" / "manifest.json").write_bytes(many.model_dump_json(indent=1).encode())
    command = [sys.executable, __file__, "--first-batch", str(folder / "index")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    size = (folder / "index" / "manifest.json").stat().st_size
    print(f"{found['images']:,} images in {len(tars):,} files, a manifest of {size / 1e6:.1f} MB:")
    print(f"  the index is open after {found['open_s']:.2f} s and {found['open_mb']:.0f} MB")
    print(f"  the first batch of 512 is there after {found['batch_s']:.2f} s and {found['batch_mb']:.0f} MB")
    print(f"  on {machine('torch')['hardware']}")


def first_batch(folder: str) -> dict[str, float]:
    """Of an index: seconds and megabytes, beside what the libraries take, until it is open, and to the first batch."""

    def used_mb() -> float:
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        return resident * resource.getpagesize() / 1e6 - libraries_mb

    libraries_mb = 0.0
    libraries_mb = used_mb()
    began = time.perf_counter()
    index = TarIndex(read_manifest(folder, ""), folder, 8)
    found = {"open_s": time.perf_counter() - began, "open_mb": used_mb()}
    stream = Stream(index, "", "train", patch_size=4, seed=0, memory_bytes=0)
    stream.read(next(expected(stream, torch.arange(10**5).split(512), depth=stream.look_ahead // 512)))
    return {**found, "batch_s": time.perf_counter() - began, "batch_mb": used_mb(), "images": stream.images}


if __name__ == "__main__":
    run(main)
