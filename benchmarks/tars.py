"""Tar files of JPEG images: how fast they are read from where, with how much memory, and how large a data set may be.

Three parts. Each form reads the same files, in one process and with one thread that decodes, into tokens; the time of
an epoch is given relative to the first form's, and all are read in turn, several times; then each once more in a
process of its own, for the memory that it takes at most beside the libraries:

Stream, from the disk       data.read.stream.Stream, with data.source=webdataset and its woven order
Stream, from HTTP           the same, from a web server of this machine, nothing kept on the disk
Stream, kept on the disk    the same, after it was read once
webdataset                  webdataset.WebDataset with a buffer of as many images as the woven order has, PIL decoding
mosaicml-streaming, litdata where they are installed: the JPEG files in their own format, on the disk, PIL decoding

--fetch: what a request for a part of a file costs from 16 threads, through obstore, which reads what lies far away, and
through fsspec, where aiohttp or s3fs is installed.

--scale N: an index of N images in tar files of 10,000, which are all the same file, opened in a process of its own: the
seconds until the first batch is there, and the memory that it took beside the libraries.

examples:
  python benchmarks/tars.py
  python benchmarks/tars.py --images 8192 --image-size 128 --repeats 5
  python benchmarks/tars.py --fetch
  python benchmarks/tars.py --scale 100000000
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from data.storage.storage import storage_of
from data.tars.indexing import index_tars
from data.tars.manifest import Tar, TarIndex, read_manifest
from launch.commands.machine import machine
from tests.servers import S3_ENVIRONMENT, serving

TAR_IMAGES = 1024
SCALE_TAR_IMAGES = 10_000
BLOCK_BYTES, REQUESTS = 160_000, 1000
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
    add("--fetch", action="store_true", help="the part of requests")
    add("--first-batch", metavar="DIR", help="of an index: open it and read a batch, in this process")
    add("--memory-of", nargs=2, metavar=("FORM", "DIR"), help="of files that are written: read them, in this process")
    add("--serve", metavar="DIR", help="the files of a folder, until the standard input ends")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.first_batch:
        print(json.dumps(first_batch(options.first_batch)))
        return 0
    if options.memory_of:
        name, folder = options.memory_of
        print(memory_of(name, Path(folder), options))
        return 0
    if options.serve:
        with serving(Path(options.serve)) as server:
            print(server.address, flush=True)
            sys.stdin.read()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        (scale if options.scale else fetch if options.fetch else compare)(options, Path(folder))
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
    with served(tars) as address:
        for name, root in (("disk", tars), ("web", address)):
            index_tars("::".join(f"{root}/{each}" for each in names), str(folder / name), progress=False)
        written = webdataset.WebDataset(sorted(map(str, tars.iterdir())), shardshuffle=False)
        files = [record["jpg"] for record in written]
        for module, write in (("streaming", write_mosaic), ("litdata", write_litdata)):
            if find_spec(module):
                write(files, folder / module)
        forms = {name: form(folder, options) for name, form in FORMS.items() if is_here(name)}
        times: dict[str, list[float]] = {name: [] for name in forms}
        for repeat in range(1 + options.repeats):
            for name, read in forms.items():
                began = time.perf_counter()
                images = sum(len(x_BLD) for x_BLD in read(repeat))
                times[name].append((time.perf_counter() - began) / images)
        memory = {}
        for name in forms:
            command = [sys.executable, __file__, "--memory-of", name, str(folder), "--image-size", str(size)]
            command += ["--batch-size", str(options.batch_size)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            memory[name] = float(found.stdout.splitlines()[-1])
    base = times["Stream, from the disk"][1:]
    where = machine("torch", "webdataset", "pillow", "obstore")
    print(f"{options.images:,} images of {size} pixels, on {where['hardware']}")
    print("\n| form | time, relative | images/s | memory, MB |\n|---|---|---|---|")
    for name, each in times.items():
        ratio = median(own / other for own, other in zip(each[1:], base, strict=True))
        print(f"| {name} | {ratio:.2f} | {1 / median(each[1:]):,.0f} | {memory[name]:,.0f} |")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the files of a folder on a web server of this machine, in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


def open_stream(index: str, cache: str, folder: Path, options: argparse.Namespace) -> Callable:
    found = TarIndex(read_manifest(str(folder / index), ""), str(folder / index), options.image_size)
    kept = BlockCache(folder / "cache", 2**36) if cache else BlockCache(folder, 0)
    stream = Stream(found, "", "train", patch_size=PATCH, seed=0, memory_bytes=0, cache=kept)
    return lambda epoch: from_stream(stream, options.batch_size, epoch)


def open_webdataset(folder: Path, options: argparse.Namespace) -> Callable:
    return lambda epoch: from_webdataset(sorted(map(str, (folder / "tars").iterdir())), options, epoch)


def open_mosaic(folder: Path, options: argparse.Namespace) -> Callable:
    from streaming import StreamingDataset

    samples = StreamingDataset(local=str(folder / "streaming"), shuffle=True, batch_size=1)
    return lambda epoch: from_samples(samples, options.batch_size)


def open_litdata(folder: Path, options: argparse.Namespace) -> Callable:
    import litdata

    samples = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True)
    return lambda epoch: from_samples(samples, options.batch_size)


# Each opens what is written in a folder, and gives a function of the epoch that reads it as batches of tokens.
FORMS: dict[str, Callable[[Path, argparse.Namespace], Callable[[int], Iterator[torch.Tensor]]]] = {
    "Stream, from the disk": partial(open_stream, "disk", ""),
    "Stream, from HTTP": partial(open_stream, "web", ""),
    "Stream, kept on the disk": partial(open_stream, "web", "cache"),
    "webdataset": open_webdataset,
    "mosaicml-streaming": open_mosaic,
    "litdata": open_litdata,
}


def is_here(form: str) -> bool:
    module = {"mosaicml-streaming": "streaming", "litdata": "litdata"}.get(form)
    return not module or find_spec(module) is not None


def memory_of(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Megabytes that two epochs of a form take at most, beside what the libraries take and one batch."""
    tokens = torch.rand(2, 3).float()  # what torch loads when it is used first
    del tokens
    if name in ("mosaicml-streaming", "litdata"):
        __import__("streaming" if name == "mosaicml-streaming" else "litdata")
    before = resident_mb()
    read = FORMS[name](folder, options)
    most = 0.0
    for epoch in range(2):
        for _ in read(epoch):
            most = max(most, resident_mb())
    return most - before


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def from_stream(stream: Stream, batch_size: int, epoch: int) -> Iterator[torch.Tensor]:
    positions = torch.arange(epoch * stream.images, (epoch + 1) * stream.images).split(batch_size)
    for position_B in expected(stream, positions, depth=stream.look_ahead // batch_size):
        yield stream.read(position_B).x_BLD


def from_webdataset(tars: list[str], options: argparse.Namespace, epoch: int) -> Iterator[torch.Tensor]:
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=epoch).shuffle(Weave().images).decode("rgb8")
    for images_BHWC, _ in dataset.to_tuple("jpg", "cls").batched(options.batch_size):
        yield patchify(torch.from_numpy(images_BHWC), PATCH).float() / 255


def write_mosaic(files: list[bytes], folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, size_limit=2**24) as writer:
        for content in files:
            writer.write({"jpg": content})


def write_litdata(files: list[bytes], folder: Path) -> None:
    import litdata

    litdata.optimize(fn=_as_sample, inputs=files, output_dir=str(folder), chunk_bytes="16MB", num_workers=1)


def _as_sample(content: bytes) -> dict[str, bytes]:
    return {"jpg": content}


def from_samples(samples: Iterable[dict], batch_size: int) -> Iterator[torch.Tensor]:
    images = (np.asarray(Image.open(BytesIO(sample["jpg"])).convert("RGB")) for sample in samples)
    while batch := list(islice(images, batch_size)):
        yield patchify(torch.from_numpy(np.stack(batch)), PATCH).float() / 255


def fetch(options: argparse.Namespace, folder: Path) -> None:
    """Parts of 160 KB, as a block of 16 images has, of one file, through each library."""
    (folder / "bucket").mkdir()
    (folder / "bucket" / "0.tar").write_bytes(np.random.default_rng(0).bytes(REQUESTS * BLOCK_BYTES))
    parts = [(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES) for number in range(REQUESTS)]
    with served(folder) as address:
        os.environ.update(S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": address})
        ways = {
            "obstore, HTTP": _with_obstore(f"{address}/bucket"),
            "obstore, S3": _with_obstore("s3://bucket"),
        }
        if find_spec("aiohttp"):
            ways["fsspec, HTTP"] = _with_fsspec("http", f"{address}/bucket/0.tar")
        if find_spec("s3fs"):
            ways["fsspec with s3fs, S3"] = _with_fsspec("s3", "bucket/0.tar", endpoint_url=address)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        with ThreadPoolExecutor(16) as pool:
            for _ in range(1 + options.repeats):
                for name, ask in ways.items():
                    began, busy = time.perf_counter(), time.process_time()
                    assert set(pool.map(ask, parts)) == {BLOCK_BYTES}
                    found[name].append((time.perf_counter() - began, time.process_time() - busy))
    print(f"{REQUESTS:,} parts of {BLOCK_BYTES:,} bytes, from 16 threads, on {machine('torch', 'obstore')['hardware']}")
    print("\n| | ms a request | of it work of this process |\n|---|---|---|")
    for name, times in found.items():
        whole, busy = (1000 * median(column) / REQUESTS for column in zip(*times[1:], strict=True))
        print(f"| {name} | {whole:.2f} | {busy:.2f} |")


def _with_obstore(root: str) -> Callable[[tuple[int, int]], int]:
    storage = storage_of(root)
    return lambda part: len(storage.fetch("0.tar", *part).content)


def _with_fsspec(protocol: str, path: str, **options) -> Callable[[tuple[int, int]], int]:
    import fsspec

    files = fsspec.filesystem(protocol, **options)
    return lambda part: len(files.cat_file(path, start=part[0], end=part[1]))


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
    libraries_mb = resident_mb()
    began = time.perf_counter()
    index = TarIndex(read_manifest(folder, ""), folder, 8)
    found = {"open_s": time.perf_counter() - began, "open_mb": resident_mb() - libraries_mb}
    stream = Stream(index, "", "train", patch_size=4, seed=0, memory_bytes=0)
    stream.read(next(expected(stream, torch.arange(10**5).split(512), depth=stream.look_ahead // 512)))
    return {
        **found,
        "batch_s": time.perf_counter() - began,
        "batch_mb": resident_mb() - libraries_mb,
        "images": stream.images,
    }


if __name__ == "__main__":
    run(main)
