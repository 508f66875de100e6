"""From shards of images to shards of their PatchAE codes, spread over processes: what lies between the two stages."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from biglearn_vae.images import open_stream
from data.errors import UserError, printable
from data.prepare.shard_files import (
    REQUESTS,
    Portion,
    claim,
    locked,
    names_of,
    read_sidecar,
    refuse_other,
    remove,
    write_shard,
)
from data.read.config import DataConfig
from data.read.index import (
    INDEX_NAME,
    Codes,
    Index,
    Moments,
    Recipe,
    Replaced,
    Shard,
    read_index,
    require_folder_path,
)
from data.read.stream import ImageIndex, Stream, prefetch
from data.read.views import mirrored
from data.storage.addresses import TARS
from data.storage.storage import Storage, is_local, is_there, storage_of
from model.patch_autoencoder.codec import CODEC, PatchCodec, codes_of, is_codec_file, read_codec, weights_sha256
from model.patch_autoencoder.network import PatchAutoencoder
from trainer.ranks.world import World

# 67 MB of codes a shard, twice that with those of mirrored images: the work that an interruption costs, and that
# processes share.
_RECORD_IMAGES, _SHARD_RECORDS = 256, 4
_MAX_DAMAGED = 100  # images of a split that sound ones may stand in for
_READERS = 4  # threads that read records ahead


@dataclass(frozen=True)
class _Job:
    """One latent shard: the images first .. first + count - 1 of a split."""

    name: str
    split: str
    first: int
    count: int


@dataclass(frozen=True)
class _Done:
    """What came of a job: the moments of its codes, its shard, unless it was not wanted, and its stand-ins."""

    moments: Moments
    shard: Shard | None
    replaced: tuple[Replaced, ...]


def encode_images(
    data: DataConfig,
    index: ImageIndex,
    out: Path | str,
    autoencoder: PatchAutoencoder,
    world: World,
    *,
    command: Callable[..., str],
    flip: bool = False,
    overwrite: bool = False,
    statistics_only: bool = False,
) -> str:
    """Write the codes of all splits as shards in `out`, the codec, and the index, which comes last; say what was done.

    data, index: the images; patches are as large as those of the PatchAE. out: a folder, or an address. flip: whether
    the codes of the mirrored images are written, too; a folder that has them keeps them.

    A folder that is whole is left alone; one that was interrupted is completed, shard by shard. The codec is the
    PatchAE with the mean and standard deviation of each dimension of its codes of the training images; with
    `statistics_only` it is all that is written, for encoding on the fly. command(*options): what a person starts
    again, for messages. Collective over `world`.

    For a damaged image the codes and label of the one that stands in for it are written, as the stream says. Raises
    UserError, on all ranks, when the folder holds other data, too many images are damaged, codes are not finite, or
    a dimension of them does not vary.
    """
    began = time.monotonic()
    with world.agreed():
        require_folder_path(out, kind="writable")
        if _is_same(out, data.shards):  # overwriting would remove what is to be encoded
            raise UserError(f"{out} holds the images: choose another --out for their codes")
        flip = flip or not overwrite and _has_mirrored(out, command)
        recipe = _recipe(data.shards, index, autoencoder, flip)
        folder = storage_of(out)
        try:
            folder.make()
        except OSError as error:
            raise UserError(f"{out} cannot be made ({error.strerror}): choose another --out") from None
    jobs = [*_jobs(index, recipe, only="train" if statistics_only else None)]
    wanted = {CODEC} if statistics_only else {CODEC, INDEX_NAME}.union(*(names_of(job.name) for job in jobs))
    with ExitStack() as stack:
        found, is_whole, ours = {}, False, set()
        with world.agreed():
            if world.is_main:
                stack.enter_context(_alone_in(folder))
                if overwrite:
                    ours = _claim(folder, wanted)
                    remove(folder, ours)
                else:
                    _refuse_other(out, recipe, index.checksum, command)
                found = {} if statistics_only else _finished(folder, jobs, recipe)
                is_whole = statistics_only or len(found) == len(jobs) and is_there(out, INDEX_NAME)
                is_whole = is_whole and _has_codec(out, recipe, index.checksum)
                if not overwrite and not is_whole:
                    ours = _claim(folder, wanted)
        found, is_whole = world.broadcast((found, is_whole))
        if is_whole:
            return f"{out} is whole, nothing to do"
        todo = [job for job in jobs if job.name not in found]

        of_patches = data.model_copy(update={"patch_size": autoencoder.patch_size, "memory_bytes": 0})
        encoder = _Encoder(of_patches, index, folder, recipe, autoencoder.to(world.device), world.device)
        mine = todo[world.rank :: world.size]
        name = "encode" if world.size == 1 else f"encode, a share of {world.size}"
        with (
            world.agreed(),
            tqdm(
                total=sum(job.count for job in mine), unit=" images", desc=name, disable=None if world.is_main else True
            ) as bar,
        ):
            made = {job.name: encoder.encode(job, statistics_only, bar.update) for job in mine}
        for of_rank in world.gather(made):
            found |= of_rank
        known = {(split, image.index) for split in index.images for image in index.replaced_in(split)}
        stand_ins = [(job.split, image.index) for job in jobs for image in found[job.name].replaced]
        damaged = len({*stand_ins} - known)

        with world.agreed():
            if damaged > _MAX_DAMAGED:
                raise _too_damaged(data.shards, index)
            if world.is_main:
                of_train = [found[job.name].moments for job in jobs if job.split == "train"]
                codec = PatchCodec(autoencoder, *_statistics(merge(of_train), data.shards), index.checksum)
                folder.write(CODEC, codec.to_bytes())
                if not statistics_only:
                    splits = {job.split: () for job in jobs}
                    for job in jobs:
                        splits[job.split] += (found[job.name].shard,)
                    whole = Index(**recipe.model_dump(), splits=splits)
                    remove(folder, ours - wanted)
                    folder.write(INDEX_NAME, whole.model_dump_json(indent=1, exclude_none=True).encode())
        world.gather(None)  # no rank goes on to read before the index is there
    counts = f"{sum(job.count for job in jobs):,} images"
    what = f"the statistics of {counts}" if statistics_only else f"the codes of {counts} in {len(jobs)} shards"
    resumed = f" ({len(jobs) - len(todo)} were there already)" if len(todo) < len(jobs) else ""
    stood_in = f"; sound images stand in for {damaged} damaged ones" if damaged else ""
    return f"wrote {out}: {what}{resumed}, in {time.monotonic() - began:.1f} seconds{stood_in}"


def _is_same(out: Path | str, images: str) -> bool:
    here, there = (storage_of(root).root for root in (out, images))
    if is_local(out) and is_local(images):
        return Path(here).resolve() == Path(there).resolve()
    return str(here).rstrip("/").lower() == str(there).rstrip("/").lower()


def _has_mirrored(out: Path | str, command: Callable[..., str]) -> bool:
    if not is_there(out, INDEX_NAME):
        return False
    codes = read_index(out, command).codes
    return bool(codes and codes.mirrored)


def _recipe(images: str, index: ImageIndex, autoencoder: PatchAutoencoder, flip: bool) -> Recipe:
    """What decides the latent shards of these images."""
    height, width, _ = index.image_shape
    side = autoencoder.patch_size
    if index.codes:
        raise UserError(f"{images} holds codes already: give the folder of the images with --images")
    if height != width or height % side:
        larger = max(side, round(height / side) * side)
        remedy = "give" if index.source == TARS else "prepare them with"
        raise UserError(
            f"{images} has images of {height}x{width} pixels, which do not divide into patches of {side}: {remedy}"
            f" --image-size {larger}"
        )
    codes = Codes(
        patch_autoencoder_sha256=weights_sha256(autoencoder),
        patches=(height // side) ** 2,
        code_dim=autoencoder.code_dim,
        mirrored=flip,
    )
    layout = {"record_images": _RECORD_IMAGES, "shard_records": _SHARD_RECORDS, "codes": codes}
    of_images = {name: getattr(index, name) for name in ("source", "source_sha256", "image_shape", "classes")}
    return Recipe(**of_images, **layout)


@contextmanager
def _alone_in(out: Storage) -> Iterator[None]:
    """Not waited for: the other ranks would wait in a collective meanwhile."""
    try:
        with locked(out, wait=False):
            yield
    except BlockingIOError:
        raise UserError(
            f"{out.root} is being written by another process: wait for it, or choose another --out"
        ) from None


def _claim(out: Storage, wanted: set[str]) -> set[str]:
    """What may be removed and replaced."""
    return claim(out, wanted, codes=True, owned={CODEC} if is_codec_file(out.root) else set())


def _refuse_other(out: Path | str, recipe: Recipe, images: str, command: Callable[..., str]) -> None:
    """See to it that the folder has nothing but parts of what will be written."""
    if is_there(out, INDEX_NAME):
        refuse_other(out, read_index(out, command).recipe(), recipe, command("--overwrite"))
    elif is_there(out, CODEC) and not _has_codec(out, recipe, images):
        remedy = f"choose another --out, or {command('--overwrite')}"
        raise UserError(f"{out}/{CODEC} is of another PatchAE, or of other images, or damaged: {remedy}")


def _has_codec(out: Path | str, recipe: Recipe, images: str) -> bool:
    """Whether the codec is that of the recipe, with the statistics of these images."""
    try:
        codec = read_codec(f"{out}/{CODEC}")
    except (FileNotFoundError, UserError):
        return False
    except OSError as error:
        raise UserError(f"{out}/{CODEC} cannot be read ({error.strerror})") from None
    return (codec.patch_autoencoder, codec.images) == (recipe.codes.patch_autoencoder_sha256, images)


def _jobs(index: ImageIndex, recipe: Recipe, only: str | None) -> Iterator[_Job]:
    step = recipe.record_images * recipe.shard_records
    for split, images in index.images.items():
        if only in (None, split):
            for number, first in enumerate(range(0, images, step)):
                yield _Job(f"{split}-{number:06d}.tar", split, first, min(step, images - first))


def _finished(folder: Storage, jobs: list[_Job], recipe: Recipe) -> dict[str, _Done]:
    with ThreadPoolExecutor(REQUESTS) as pool:
        sidecars = pool.map(lambda job: read_sidecar(folder, job.name, recipe, job.count), jobs)
        found = dict(zip((job.name for job in jobs), sidecars, strict=True))
    values = recipe.codes.code_dim, recipe.codes.patches
    return {
        job.name: _Done(side.moments, side.shard, side.shard.replaced)
        for job in jobs
        if (side := found[job.name]) and side.moments and _are_of(side.moments, job.count, *values)
    }


def _are_of(moments: Moments, images: int, code_dim: int, patches: int) -> bool:
    """Whether these can be the moments of so many codes. What a file says is not trusted."""
    sizes = (moments.count, len(moments.mean), len(moments.deviation))
    values_are_sound = np.isfinite([*moments.mean, *moments.deviation]).all() and min(moments.deviation, default=0) >= 0
    return sizes == (images * patches, code_dim, code_dim) and bool(values_are_sound)


class _Encoder:
    """One process at work."""

    def __init__(
        self,
        data: DataConfig,
        index: ImageIndex,
        folder: Storage,
        recipe: Recipe,
        autoencoder: PatchAutoencoder,
        device: torch.device,
    ):
        self._data, self._index, self._folder, self._recipe = data, index, folder, recipe
        self._autoencoder, self._device = autoencoder, device
        self._streams: dict[str, Stream] = {}

    def encode(self, job: _Job, statistics_only: bool, advance: Callable[[int], None]) -> _Done:
        """Write one latent shard, unless only the statistics are wanted."""
        moments: list[Moments] = []
        replaced: list[Replaced] = []
        portions = self._portions(job, moments, replaced, advance)
        if statistics_only:
            deque(portions, maxlen=0)
            return _Done(merge(moments), None, tuple(replaced))
        try:
            shard = write_shard(self._folder, job.name, self._recipe, portions, replaced, partial(merge, moments))
        except OSError as error:
            raise UserError(
                f"{self._folder.root}/{job.name} cannot be written ({error.strerror}): see to its disk, and start the"
                " same command again"
            ) from None
        return _Done(merge(moments), shard, tuple(replaced))

    def _portions(
        self, job: _Job, moments: list[Moments], replaced: list[Replaced], advance: Callable[[int], None]
    ) -> Iterator[Portion]:
        """The records of a shard; the moments of each are appended, and at its end the damaged images."""
        stream = self._stream(job.split)
        places = torch.arange(job.first, job.first + job.count).split(self._recipe.record_images)
        for place_B, batch in zip(places, prefetch(stream.read, places, _READERS), strict=True):
            first, last = int(place_B[0]), int(place_B[-1])
            if len(stream.damaged) > _MAX_DAMAGED:
                raise _too_damaged(self._data.shards, self._index, stream.damaged[min(stream.damaged)])
            code_BLC = content_BN = codes_of(self._autoencoder, batch.x_BLD).cpu().numpy()
            if self._recipe.codes.mirrored:
                x_BLD = mirrored(batch.x_BLD, self._data.patch_size)
                content_BN = np.stack([code_BLC, codes_of(self._autoencoder, x_BLD).cpu().numpy()], axis=1)
            if not np.isfinite(content_BN).all():
                raise UserError(
                    f"codes of the {job.split} images {first} to {last} are not finite in float16: the PatchAE has"
                    " diverged, train it again with lower learning rates (optimizer.*)"
                )
            moments.append(moments_of(code_BLC.reshape(-1, code_BLC.shape[-1])))
            advance(len(place_B))
            yield f"{job.split}-{first // self._recipe.record_images:06d}", content_BN, batch.label_B.cpu().numpy()
        replaced += self._stand_ins(job, stream)

    def _stand_ins(self, job: _Job, stream: Stream) -> list[Replaced]:
        """Those that the images' index names, and those found damaged since."""
        end = job.first + job.count
        known = {image.index: image for image in self._index.replaced_in(job.split)}
        for place in sorted(stream.damaged):
            sound = next(i % stream.images for i in count(place + 1) if i % stream.images not in stream.damaged)
            reason = printable(stream.damaged[place])
            known[place] = Replaced(name=f"{job.split} {place}", reason=reason, index=place, stand_in=sound)
        return [known[place] for place in sorted(known) if job.first <= place < end]

    def _stream(self, split: str) -> Stream:
        if split not in self._streams:
            self._streams[split] = open_stream(self._data, self._index, split, None, self._device)
        return self._streams[split]


def _too_damaged(images: str, index: ImageIndex, first: str = "") -> UserError:
    named = f" (first: {first})" if first else ""
    return UserError(f"more than {_MAX_DAMAGED} images of {images} are damaged{named}: {index.remedy(images)}")


def moments_of(code_NC: np.ndarray) -> Moments:
    """Of N codes, per dimension, in float64."""
    code_NC = code_NC.astype(np.float64)
    mean_C = code_NC.mean(0)
    return _moments(len(code_NC), mean_C, np.square(code_NC - mean_C).sum(0))


def merge(parts: Iterable[Moments]) -> Moments:
    """Moments of all codes from those of disjoint parts of them (Chan et al. 1979), in the order of the parts."""
    total, mean_C, deviation_C = 0, 0.0, 0.0
    for part in parts:
        ahead_C = np.array(part.mean) - mean_C
        before, total = total, total + part.count
        mean_C = mean_C + ahead_C * (part.count / total)
        deviation_C = deviation_C + np.array(part.deviation) + ahead_C**2 * (before * part.count / total)
    return _moments(total, mean_C, deviation_C)


def _moments(total: int, mean_C: np.ndarray, deviation_C: np.ndarray) -> Moments:
    return Moments(count=total, mean=tuple(mean_C.tolist()), deviation=tuple(deviation_C.tolist()))


def _statistics(moments: Moments, images: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each dimension, float32 (C,)."""
    mean_C, std_C = torch.tensor(moments.mean), torch.tensor(moments.deviation, dtype=torch.float64)
    std_C = (std_C / moments.count).sqrt().float()
    still = (std_C == 0).nonzero().flatten().tolist()
    if still:
        raise UserError(
            f"{len(still)} of {len(std_C)} dimensions of the codes do not vary over the images of {images} (first"
            f" {still[0]}), so that they cannot be standardised: train the PatchAE longer, or on more than one image"
        )
    return mean_C, std_C
