"""From a data set to a folder of shards of its images."""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.errors import UserError, printable
from data.prepare.memory import available_bytes
from data.prepare.shard_files import (
    Portion,
    claim,
    holds,
    locked,
    names_of,
    read_sidecar,
    refuse_other,
    remove,
    write_shard,
)
from data.processes import spread
from data.read.index import (
    INDEX_NAME,
    Index,
    Recipe,
    Replaced,
    Shard,
    prepare_command,
    read_index,
    require_folder_path,
    sidecar_name,
)
from data.sources import find_source
from data.sources.images import DamagedImageError, resize
from data.sources.samples import Samples, Source, warn_if_dark
from data.storage.storage import Storage, is_there, storage_of

log = logging.getLogger(__name__)

RECORD_IMAGES = 1024
_NAMED = 10  # damaged images that the log names
_WORKER_BYTES, _LARGEST_IMAGE_BYTES = 2**28, 2**30  # memory of a writing process, and of decoding a file in it


def prepare(
    source_name: str,
    out: Path | str,
    *,
    image_size: int | None = None,
    source_dir: Path | str | None = None,
    workers: int = 1,
    record_images: int = RECORD_IMAGES,
    shard_records: int = 8,
    overwrite: bool = False,
    max_damaged: int = 100,
    progress: bool = True,
) -> Index:
    """Write all splits of a source as shards of `image_size` square images, and their index.

    A folder that is whole is left alone; one that was interrupted is completed: shards whose sidecar agrees
    with the request are kept. The bytes do not depend on `workers` (processes; 1 writes in this one) or on an
    interruption. Two calls on one folder wait for one another. The outcome is logged.

    For a damaged image the next sound one of its shard is written, around the end of the shard, with its label.

    image_size: pixels, 1 to 4096; None: the source's own. source_dir: folder of the original files; None: the
    source's own place. record_images: images of a full record. shard_records: records of a full shard.
    max_damaged: damaged images of all splits that are accepted.

    Raises UserError when the source cannot be read, the folder cannot be written, it holds other data and
    `overwrite` is not set, more images are damaged than accepted, or a shard has no sound image.
    """
    began = time.monotonic()
    require_folder_path(out, kind="writable")
    if source_dir is not None:
        require_folder_path(source_dir, kind="local")
    source = find_source(source_name)
    if image_size is None:
        image_size = source.image_size
    if not 1 <= image_size <= 4096:
        raise UserError(f"images of {image_size} pixels cannot be written: choose 1 to 4096")
    splits = source.load(Path(source_dir) if source_dir is not None else None, progress)
    content = " ".join(f"{split} {samples.sha256}" for split, samples in splits.items())
    recipe = Recipe(
        source=source.name,
        source_sha256=hashlib.sha256(content.encode()).hexdigest(),
        image_shape=(image_size, image_size, source.channels),
        classes=max(samples.classes for samples in splits.values()),
        record_images=record_images,
        shard_records=shard_records,
    )
    try:
        folder = storage_of(out)
        folder.make()
        with locked(folder, wait=True):
            index, kept = _complete(folder, recipe, splits, workers, overwrite, max_damaged, progress)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror}") from error
    _log_replaced(index)
    counts = " and ".join(f"{count:,} {split}" for split, count in index.images.items())
    content = f"{counts} images in {len(index.shards)} shards, {index.bytes / 1e6:.1f} MB"
    if kept == len(index.shards):
        log.info("%s is whole, nothing to do: %s", out, content)
    else:
        resumed = f" ({kept} shards were there already)" if kept else ""
        log.info("wrote %s: %s, in %.1f seconds%s", out, content, time.monotonic() - began, resumed)
    warn_if_dark(splits.values())
    return index


def default_workers(source: Source, image_size: int) -> int:
    """As many processes as there are cores, and memory for; one for what is embedded, which is written at once."""
    if source.embedded:
        return 1
    record = RECORD_IMAGES * source.channels * image_size**2
    needed = _WORKER_BYTES + 3 * record + (_LARGEST_IMAGE_BYTES if source.image_files else 0)
    return max(1, min(len(os.sched_getaffinity(0)), available_bytes() // needed))


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    folder: Path | str
    name: str
    recipe: Recipe
    split: str
    first_record: int  # its number in the split
    samples: Samples


def _complete(
    folder: Storage,
    recipe: Recipe,
    splits: dict[str, Samples],
    workers: int,
    overwrite: bool,
    max_damaged: int,
    progress: bool,
) -> tuple[Index, int]:
    """The index of the finished folder, and how many shards were there already."""
    out = folder.root
    jobs = [job for split, samples in splits.items() for job in _jobs(out, recipe, split, samples)]
    wanted = {INDEX_NAME}.union(*(names_of(job.name) for job in jobs))
    present, ours = None, None
    if overwrite:
        ours = claim(folder, wanted, codes=False)
        remove(folder, ours)
    elif is_there(out, INDEX_NAME):
        present = read_index(out, partial(prepare_command, recipe.source, out))
        refuse_other(out, present.recipe(), recipe, prepare_command(recipe.source, out, "--overwrite"))
    finished = {job.name: shard for job in jobs if (shard := _finished(folder, job, present))}
    kept = len(finished)
    _refuse_damaged(out, finished.values(), max_damaged)
    todo = [job for job in jobs if job.name not in finished]
    if present and present.shards == [*finished.values()]:
        return present, kept

    ours = claim(folder, wanted, codes=False) if ours is None else ours
    there = sum(shard.images for shard in finished.values())
    shown = None if progress and todo else True  # None: on a terminal
    total = sum(len(job.samples.labels_N) for job in jobs)
    with tqdm(total=total, initial=there, unit=" images", desc=str(out), disable=shown) as bar:
        for job, shard in spread(_write, todo, workers):
            finished[job.name] = shard
            _refuse_damaged(out, finished.values(), max_damaged)
            bar.update(shard.images)

    # What an interrupted run with another request left would mislead readers that take all *.tar.
    remove(folder, ours - wanted)
    shards = {split: tuple(finished[job.name] for job in jobs if job.split == split) for split in splits}
    index = Index(**recipe.model_dump(), splits=shards)
    folder.write(INDEX_NAME, index.model_dump_json(indent=1, exclude_none=True).encode())
    return index, kept


def _finished(folder: Storage, job: _Job, present: Index | None) -> Shard | None:
    """The shard of a job, if it is there and whole, which its sidecar says or, where there is none, the index."""
    if present and not is_there(job.folder, sidecar_name(job.name)):
        return next((shard for shard in present.shards if holds(folder, job.name, shard)), None)
    sidecar = read_sidecar(folder, job.name, job.recipe, len(job.samples.labels_N))
    return sidecar and sidecar.shard


def _refuse_damaged(out: Path | str, shards: Iterable[Shard], max_damaged: int) -> None:
    replaced = [image for shard in shards for image in shard.replaced]
    if len(replaced) > max_damaged:
        first = "; ".join(f"{image.name}: {image.reason}" for image in replaced[:3])
        raise UserError(
            f"damaged images: {len(replaced)} or more, which is more than --max-damaged {max_damaged} (first {first}):"
            f" repair them, or accept more; the finished shards stay in {out}"
        )


def _log_replaced(index: Index) -> None:
    replaced = [(split, image) for split in index.splits for shard in index.splits[split] for image in shard.replaced]
    for split, image in replaced[:_NAMED]:
        log.warning("%s is damaged: %s; %s image %d stands in", image.name, image.reason, split, image.stand_in)
    if len(replaced) > _NAMED:
        log.warning("and %d more; index.json names them all", len(replaced) - _NAMED)


def _jobs(out: Path | str, recipe: Recipe, split: str, samples: Samples) -> Iterator[_Job]:
    step = recipe.record_images * recipe.shard_records
    for number, start in enumerate(range(0, len(samples.labels_N), step)):
        part = samples[start : start + step]
        yield _Job(out, f"{split}-{number:06d}.tar", recipe, split, number * recipe.shard_records, part)


def _write(job: _Job) -> Shard:
    """Write one shard and its sidecar. UserError if no image is sound."""
    images = _SoundImages(job)
    return write_shard(storage_of(job.folder), job.name, job.recipe, _portions(job, images), images.replaced)


def _portions(job: _Job, images: "_SoundImages") -> Iterator[Portion]:
    size, _, channels = job.recipe.image_shape
    total = len(job.samples.labels_N)
    for number, start in enumerate(range(0, total, job.recipe.record_images)):
        places = range(start, min(start + job.recipe.record_images, total))
        images_NHWC = np.empty((len(places), size, size, channels), np.uint8)
        labels_N = np.empty(len(places), np.int64)
        for row, place in enumerate(places):
            sound, image = images.read(place)
            images_NHWC[row] = resize(image, size, channels)
            labels_N[row] = job.samples.labels_N[sound]
        yield f"{job.split}-{job.first_record + number:06d}", images_NHWC, labels_N


class _SoundImages:
    """The images of one shard; for a damaged one the next sound one, around the end."""

    def __init__(self, job: _Job):
        self.replaced: list[Replaced] = []
        self._job = job
        self._reasons: dict[int, str] = {}

    def read(self, place: int) -> tuple[int, np.ndarray]:
        """The place in the shard of the image that is written, and the image."""
        images = self._job.samples.images
        for step in range(len(images)):
            sound = (place + step) % len(images)
            if sound in self._reasons:
                continue
            try:
                image = images[sound]
            except DamagedImageError as error:
                self._reasons[sound] = str(error)
            else:
                if sound != place:
                    self._note(place, sound)
                return sound, image
        raise UserError(
            f"none of the {len(images)} images for {self._job.name} can be used (first"
            f" {printable(images.names[0])}: {self._reasons[0]}):"
            " does --source name the right folder?"
        )

    def _note(self, place: int, sound: int) -> None:
        job = self._job
        first = job.first_record * job.recipe.record_images
        name = printable(job.samples.images.names[place])
        self.replaced.append(
            Replaced(name=name, reason=self._reasons[place], index=first + place, stand_in=first + sound)
        )
