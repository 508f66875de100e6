r"""How fast batches arrive: this project's Stream, plain webdataset, and a folder of image files.

Every form gives shuffled batches of float32 tokens (B, L, D) and labels, of the same images of the same size:

Stream, in memory           data.read.stream.Stream that holds the set, as for sets of up to data.memory_bytes
Stream, from disk           each image read at random from its shard, and its CRC-32 checked
Stream, from disk, ahead    the same, read ahead by two threads
webdataset                  a file and a label per image in tar shards of 1,024, shuffle(1000), decode, batched
folder                      a file per image, PIL, torch's DataLoader in this process
folder, 2 workers           the same with two worker processes that open the files
latents, in memory          with --latents: a Stream of PatchAE codes, 512 of float16 a patch, standardised
latents, from disk          the same, each image's codes read at random from their shard, and their CRC-32 checked

Files are PNG for grey images and JPEG of quality 95 for colour, already of the right size. All that is read was just
written, so it comes from the memory in which the system caches files. One epoch of each form warms up and is compared
with the shards, image by image (what JPEG keeps, within 2 %); then all forms take turns. The values of the codes are
random, because reading them does not depend on them. `ratio` is the time of an
epoch over that of "Stream, in memory" in the same turn, the median over the turns.

examples:
  python benchmarks/stream.py
  python benchmarks/stream.py --source mnist --from ~/torchvision --out stream.json
  python benchmarks/stream.py --source celeba --from ~/celeba --image-size 128 --patch-size 16 --images 2048 \
      --latents
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.order.parts import Whole
from data.patches import patchify
from data.prepare import prepare
from data.prepare.shard_files import write_shard
from data.read.index import Codes, Index
from data.read.sound import SoundImages
from data.read.stream import Stream, prefetch
from data.sources import SOURCES
from data.storage.cache import BlockCache
from data.storage.storage import LocalFolder
from launch.commands.machine import machine
from model.patch_autoencoder.codec import PatchCodec
from model.patch_autoencoder.network import PatchAutoencoder

SHARD_IMAGES = 1024
CODE_DIM = PatchAutoencoder.code_dim
BASE = "Stream, in memory"

Batches = Iterator[tuple[Tensor, Tensor]]  # x_BLD and label_B
Form = Callable[[int], Batches]  # the batches of an epoch


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    print(table(rows))
    if options.out:
        save(options.out, rows)


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)
    add = parser.add_argument
    add("--source", choices=SOURCES, default="digits", help="default: %(default)s")
    add("--from", dest="folder", metavar="DIR", help="the original files, as --source of launch/prepare.py")
    add("--images", type=whole_number, default=4096, help="rounded up to shards of 1,024; default: %(default)s")
    add("--image-size", type=whole_number, default=32, metavar="N", help="pixels; default: %(default)s")
    add("--patch-size", type=whole_number, default=4, metavar="N", help="pixels; default: %(default)s")
    add("--batch-size", type=whole_number, default=128, metavar="N", help="default: %(default)s")
    add("--repeats", type=whole_number, default=7, metavar="N", help="epochs of each form; default: %(default)s")
    add("--latents", action="store_true", help="also latent shards, for patches of 16")
    add("--out", type=Path, help="JSON; rows of other sources and sizes that it holds stay")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> list[dict]:
    """A row for each form."""
    shards = folder / "shards"
    index = prepare(
        options.source,
        shards,
        image_size=options.image_size,
        source_dir=options.folder,
        record_images=SHARD_IMAGES,
        shard_records=1,
    )
    first = index.splits["train"][: math.ceil(options.images / SHARD_IMAGES)]
    index = index.model_copy(update={"splits": {"train": first}})
    images = index.images["train"]
    forms = make_forms(options, index, shards, folder)
    times = {name: [] for name in forms}
    with tqdm(total=len(forms) * (1 + options.repeats), unit=" epochs", delay=2, disable=None) as bar:
        for name, form in forms.items():
            if not name.startswith("latents"):
                compare(name, form, whole_split(index, shards))
            bar.update()
        for repeat in range(options.repeats):
            for name, form in forms.items():
                times[name].append(seconds(form, 1 + repeat))
                bar.update()
    where = machine("torch", "webdataset", "pillow")
    shape = {name: getattr(options, name) for name in ("source", "image_size", "patch_size", "batch_size")}
    return [
        {
            "form": name,
            **shape,
            "images": images,
            "ratio": round(median(own / base for own, base in zip(times[name], times[BASE], strict=True)), 3),
            "images_per_second": round(images / median(times[name]), 1),
            **where,
        }
        for name in forms
    ]


def make_forms(options: argparse.Namespace, index: Index, shards: Path, folder: Path) -> dict[str, Form]:
    """All forms, those of Stream first; the files of the others are written."""
    memory, disk = (
        Stream(index, shards, "train", patch_size=options.patch_size, seed=0, memory_bytes=memory_bytes)
        for memory_bytes in (2**62, 0)
    )
    source = whole_split(index, shards)
    grey = index.image_shape[2] == 1
    files, tars = folder / "files", folder / "tars"
    write(source, "png" if grey else "jpg", files, tars)
    _, label_N = source.read(np.arange(source.images))
    load = partial(DataLoader, Files(files, "L" if grey else "RGB", label_N), options.batch_size, shuffle=True)
    in_process, by_workers = load(), load(num_workers=2, persistent_workers=True)
    forms = {
        BASE: partial(from_stream, memory, options.batch_size, 0),
        "Stream, from disk": partial(from_stream, disk, options.batch_size, 0),
        "Stream, from disk, ahead": partial(from_stream, disk, options.batch_size, 2),
        "webdataset": partial(from_webdataset, sorted(map(str, tars.iterdir())), "l8" if grey else "rgb8", options),
        "folder": partial(from_loader, in_process, options.patch_size),
        "folder, 2 workers": partial(from_loader, by_workers, options.patch_size),
    }
    if options.latents:
        codec = PatchCodec(PatchAutoencoder(), torch.zeros(CODE_DIM), torch.ones(CODE_DIM), images="")
        codes = write_codes(index, folder / "latents", codec)
        for name, memory_bytes in (("latents, in memory", 2**62), ("latents, from disk", 0)):
            how = {"memory_bytes": memory_bytes, "transform": codec.standardise}
            stream = Stream(codes, folder / "latents", "train", patch_size=options.patch_size, seed=0, **how)
            forms[name] = partial(from_stream, stream, options.batch_size, 0)
    return forms


def whole_split(index: Index, shards: Path) -> SoundImages:
    return index.open_split(shards, "train", Whole(index.images["train"]), BlockCache(Path(), 0))


def write_codes(index: Index, folder: Path, codec: PatchCodec) -> Index:
    """Latent shards for as many images, with the labels 0."""
    patches = (index.image_shape[0] // codec.autoencoder.patch_size) ** 2
    codes = Codes(patch_autoencoder_sha256=codec.patch_autoencoder, patches=patches, code_dim=CODE_DIM)
    recipe = index.recipe().model_copy(update={"codes": codes, "record_images": 256, "shard_records": 4})
    folder.mkdir()
    generator, shards = np.random.default_rng(0), []
    for number in range(index.images["train"] // SHARD_IMAGES):
        portions = (
            (f"train-{4 * number + part:06d}", code_BLC.astype(np.float16), np.zeros(256, np.int64))
            for part, code_BLC in enumerate(generator.standard_normal((4, 256, patches, CODE_DIM), np.float32))
        )
        shards.append(write_shard(LocalFolder(folder), f"train-{number:06d}.tar", recipe, portions))
    return Index(**recipe.model_dump(), splits={"train": tuple(shards)})


def write(source: SoundImages, suffix: str, files: Path, tars: Path) -> None:
    """The images as a folder of files, and with their labels as the per-sample records of webdataset."""
    files.mkdir()
    tars.mkdir()
    with webdataset.ShardWriter(str(tars / "train-%06d.tar"), maxcount=SHARD_IMAGES, verbose=0) as writer:
        for number in range(source.images):
            (image_HWC,), (label,) = source.read(np.array([number]))
            content = BytesIO()
            Image.fromarray(image_HWC.squeeze()).save(content, "png" if suffix == "png" else "jpeg", quality=95)
            key = f"{number:06d}"
            (files / f"{key}.{suffix}").write_bytes(content.getvalue())
            writer.write({"__key__": key, suffix: content.getvalue(), "cls": int(label)})


class Files(Dataset):
    """Image files of a folder, in the order of their names, with these labels."""

    def __init__(self, folder: Path, mode: str, label_N: np.ndarray):
        self.paths = sorted(folder.iterdir())
        self.mode = mode
        self.label_N = label_N

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        with Image.open(self.paths[place]) as image:
            return np.array(image.convert(self.mode)), self.label_N[place]


def from_loader(loader: DataLoader, patch_size: int, epoch: int) -> Batches:
    for images, label_B in loader:
        yield tokens(images, patch_size), label_B


def from_stream(stream: Stream, batch_size: int, workers: int, epoch: int) -> Batches:
    positions = torch.arange(epoch * stream.images, (epoch + 1) * stream.images).split(batch_size)
    for batch in prefetch(stream.read, positions, workers):
        yield batch.x_BLD, batch.label_B


def from_webdataset(tars: list[str], decoder: str, options: argparse.Namespace, epoch: int) -> Batches:
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=epoch).shuffle(1000).decode(decoder)
    for images, labels in dataset.to_tuple("png;jpg", "cls").batched(options.batch_size):
        yield tokens(torch.from_numpy(images), options.patch_size), torch.tensor(labels)


def tokens(images: Tensor, patch_size: int) -> Tensor:
    """x_BLD as Stream gives it, of uint8 images (B, H, W, 3) or grey ones (B, H, W)."""
    if images.ndim == 4:
        return patchify(images, patch_size).float() / 255
    x_BLD = patchify(images.unsqueeze(-1), patch_size).float() / 255
    return torch.stack([x_BLD] * 3, dim=-1).flatten(2)


def seconds(form: Form, epoch: int) -> float:
    """Of one epoch, from the first request to the last batch."""
    began = time.perf_counter()
    for _ in form(epoch):
        pass
    return time.perf_counter() - began


def compare(name: str, form: Form, source: SoundImages) -> None:
    """An epoch must have all images with their labels, each once: compared by the sums of their pixels."""
    rgb = 3 // source.content_shape[2]
    images_NHWC, label_N = source.read(np.arange(source.images))
    wanted = sorted(zip(label_N.tolist(), (rgb * images_NHWC.sum((1, 2, 3))).tolist(), strict=True))
    found = []
    for x_BLD, label_B in form(0):
        sum_B = (255 * x_BLD).round().to(torch.uint8).sum((1, 2))
        found += zip(label_B.tolist(), sum_B.tolist(), strict=True)
    tolerance = 0 if rgb == 3 or name.startswith("Stream") else 0.02
    same = len(found) == len(wanted) and all(
        label == other and math.isclose(total, expected, rel_tol=tolerance)
        for (label, total), (other, expected) in zip(sorted(found), wanted, strict=True)
    )
    if not same:
        raise SystemExit(f"{name}: an epoch does not hold the images of the shards")


def table(rows: list[dict]) -> str:
    batch, size, images = (rows[0][name] for name in ("batch_size", "image_size", "images"))
    lines = [
        f"{rows[0]['source']}, {images:,} images of {size}x{size}, on {rows[0]['hardware']}",
        "",
        f"| form | time, relative | images/s | ms for {batch} |",
        "|---|---|---|---|",
    ]
    for row in rows:
        speed = row["images_per_second"]
        lines.append(f"| {row['form']} | {row['ratio']:.2f} | {speed:,.0f} | {1000 * batch / speed:.2f} |")
    return "\n".join(lines)


def save(path: Path, rows: list[dict]) -> None:
    """Write the rows, behind those of other sources and sizes that the file holds."""
    kinds = ("source", "image_size", "patch_size", "batch_size")
    held = json.loads(path.read_text()) if path.exists() else []
    kept = [row for row in held if any(row[kind] != rows[0][kind] for kind in kinds)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept + rows, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
