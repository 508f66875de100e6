"""The training sequence: which image comes at which place, and how it is read from its shard."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from data.errors import UserError
from data.order.order import Order
from data.order.parts import Part, Whole
from data.patches import patchify
from data.read.index import Codes, Replaced
from data.read.sound import SoundImages
from data.storage.cache import BlockCache

Read = TypeVar("Read")

_CHUNK = 1024  # images that are read at once into memory
_LOADERS = 4  # threads that do so
_READ_BYTES = 2**24  # of the tokens of one read from memory, where the work of a read, not its bytes, costs time


class ImageIndex(Protocol):
    """What a data set says of itself, as `data.read.index.Index` and `data.tars.manifest.TarIndex` do.

    source: its name. source_sha256: of its images before they are resized. image_shape: (H, W, C). content_shape,
    content_dtype, content_bytes: of what is stored of an image. codes: what images have become, if not None. classes:
    labels are 0 .. classes - 1. images: of each split, by its name. checksum: identifies the images and their order.
    """

    source: str
    source_sha256: str
    image_shape: tuple[int, int, int]
    classes: int
    images: dict[str, int]
    codes: Codes | None
    content_shape: tuple[int, ...]
    content_dtype: np.dtype
    content_bytes: int
    checksum: str

    def open_split(self, root: Path | str, split: str, part: Part, cache: BlockCache) -> SoundImages:
        """The images of a part of a split, for reading. cache: for what lies elsewhere."""

    def order(self, root: Path | str, images: int, seed: int | None, in_memory: bool) -> Order:
        """In which so many images come; None: as they lie."""

    def draw_held_out(self, images: int, holdout: int) -> Tensor:
        """The indices of the images that are held out of so many: (holdout,) int64."""

    def replaced_in(self, split: str) -> tuple[Replaced, ...]:
        """Images that were damaged when the files were written, in whose places others lie."""

    def remedy(self, root: Path | str) -> str:
        """What makes damaged files whole, for messages."""


class Stream:
    """An endless sequence of the images of one split, or of a part of it, as tokens: pixels of patches, or their codes.

    Position n of the sequence is in epoch n // images; each epoch holds every image once, in an order that is
    a pure function of (seed, n), which the index chooses, or that of the part when the seed is None. The stream has no
    state: a run that counts the images it has seen resumes anywhere, on any number of ranks and threads.

    A split of at most `memory_bytes` is read once and stays, as it is stored, on `device`; of a larger one images are
    read when they are due. Every image is checked when it is read: for a damaged one the next sound one stands in, with
    its label.

    Raises UserError when the shards do not fit the index, no image is sound, or the images do not divide into
    patches.

    part: the images of the split that the sequence has; None: all, in file order.
    show, transform: of float32 (B, L, D), on the device: what is done to tokens, with their positions, and at last.
    is_mirrored: of codes with those of mirrored images: at which positions, (B,) int64, these are read; None: nowhere.
    cache: for shards that lie elsewhere; None keeps nothing on the disk.

    images: images of an epoch. patches: L. Grey is repeated three times: D = 3 * patch_size^2; D of codes is theirs.
    """

    def __init__(
        self,
        index: ImageIndex,
        root: Path | str,
        split: str,
        *,
        patch_size: int,
        seed: int | None,
        part: Part | None = None,
        device: torch.device | str = "cpu",
        memory_bytes: int = 2**31,
        show: Callable[[Tensor, Tensor], Tensor] | None = None,
        is_mirrored: Callable[[Tensor], Tensor] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        cache: BlockCache | None = None,
    ):
        if split not in index.images:
            raise UserError(f"{root} has no split {split!r}, only {', '.join(index.images)}")
        height, width, self._channels = index.image_shape
        if height != width or height % patch_size:
            raise UserError(f"{height}x{width} images do not divide into patches of {patch_size} pixels")
        self._part = part or Whole(index.images[split])
        self.images = self._part.images
        self.patches = (height // patch_size) ** 2
        self.device = torch.device(device)
        self._patch_size, self._holds_codes = patch_size, bool(index.codes)
        self._show, self._is_mirrored, self._transform = show, is_mirrored, transform
        self._has_mirrored = bool(index.codes and index.codes.mirrored)
        if index.codes and index.codes.patches != self.patches:
            raise UserError(
                f"{root} has {index.codes.patches} codes an image, not one for each of {self.patches} patches"
            )
        in_memory = fits_memory(index, self.images, memory_bytes)
        self._order = index.order(root, self.images, seed, in_memory)
        self._source = index.open_split(root, split, self._part, cache or BlockCache(Path(), 0))
        self._label_N: Tensor | None = None
        # uint8 pixels, grey is stored once; or float16 codes, behind them those of the mirrored image where it is read.
        self._content_NLD: Tensor | None = None
        # Beside the steps, so that what is read ahead waits for none of them.
        self._beside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if in_memory:
            self._load()

    @property
    def damaged(self) -> dict[int, str]:
        """The damaged images found so far: the index in the data set, and one line that says where and why."""
        return self._source.damaged

    def damaged_error(self, limit: int) -> UserError:
        """For a run that accepts at most `limit` damaged images and found more."""
        return self._source.damaged_error(limit)

    def order(self, position_B: Tensor) -> Tensor:
        """The index in the data set, that is in its split, of each position: (B,) int64, on the CPU."""
        return self._part.index(self._order.place(position_B.cpu()))

    def read(self, position_B: Tensor) -> Batch:
        """The images at these positions ((B,) int64, best on the CPU), on the stream's device.

        On CUDA the calling thread waits until they are there; no other thread does, and no step that the device is at.
        """
        if not self._beside:
            return self._read_tokens(position_B)
        with torch.cuda.stream(self._beside):
            batch = self._read_tokens(position_B)
        for x in (batch.x_BLD, batch.index_B, batch.label_B):
            x.record_stream(torch.cuda.default_stream(self.device))  # the steps': their memory is not reused before
        done = torch.cuda.Event(blocking=True)
        done.record(self._beside)
        done.synchronize()
        return batch

    @property
    def look_ahead(self) -> int:
        """Positions of the sequence that are worth an `expect` before they are read; 0 where the images are at hand."""
        return self._order.look_ahead if self._content_NLD is None else 0

    def expect(self, position_B: Tensor) -> None:
        """These will be read soon: what lies far away is fetched meanwhile."""
        if self._content_NLD is None:
            self._source.expect(self.order(position_B).numpy())

    def reads_at_once(self, samples: int) -> int:
        """How many batches of so many images `read` best gives at once, to be split: several, from memory."""
        if self._content_NLD is None:
            return 1
        values = self._content_NLD[0].numel() * (3 if self._channels == 1 and not self._holds_codes else 1)
        return max(1, _READ_BYTES // (4 * values * samples))

    def _read_tokens(self, position_B: Tensor) -> Batch:
        place_B = self._order.place(position_B.cpu())
        if self._content_NLD is None:
            content_BLD, label_B = self._read(self._part.index(place_B))
            content_BLD, label_B = to_device(content_BLD, self.device), to_device(label_B, self.device)
        else:
            place_B = to_device(place_B, self.device)
            content_BLD, label_B = self._content_NLD.index_select(0, place_B), self._label_N[place_B]
        position_B = to_device(position_B, self.device)
        if self._is_mirrored:
            plain_BLD, mirrored_BLD = content_BLD.chunk(2, dim=1)
            content_BLD = torch.where(self._is_mirrored(position_B)[:, None, None], mirrored_BLD, plain_BLD)
        x_BLD = content_BLD.float()
        if not self._holds_codes:
            x_BLD /= 255
            if self._show:
                x_BLD = self._show(x_BLD, position_B)
            if self._channels == 1:
                x_BLD = torch.stack([x_BLD] * 3, dim=-1).flatten(2)
        if self._transform:
            x_BLD = self._transform(x_BLD)
        return Batch(x_BLD, position_B, label_B)

    def _read(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) as they are stored, uint8 or float16, and labels (B,) int64, from the shards.

        Where codes of mirrored images are read, there are 2 L tokens.
        """
        content_BN, label_B = self._source.read(index_B.numpy())
        content_BN = torch.from_numpy(content_BN)
        if self._has_mirrored:
            content_BN = content_BN.flatten(1, 2) if self._is_mirrored else content_BN[:, 0]
        tokens_BLD = content_BN if self._holds_codes else patchify(content_BN, self._patch_size)
        return tokens_BLD, torch.from_numpy(label_B)

    def _load(self) -> None:
        """Read all images of the sequence to the device; the shards are needed no more."""
        content_NLD: Tensor | None = None
        label_N = torch.empty(self.images, dtype=torch.int64)
        places = torch.arange(self.images).split(_CHUNK)
        read = prefetch(lambda place_B: self._read(self._part.index(place_B)), places, _LOADERS)
        for place_B, (content_BLD, label_B) in zip(places, read, strict=True):
            if content_NLD is None:
                content_NLD = content_BLD.new_empty((self.images, *content_BLD.shape[1:]))
            content_NLD[place_B[0] : place_B[-1] + 1], label_N[place_B] = content_BLD, label_B
        self._content_NLD, self._label_N = content_NLD.to(self.device), label_N.to(self.device)
        self._source.close()


def fits_memory(index: ImageIndex, images: int, memory_bytes: int) -> bool:
    """Whether so many of its images are held, rather than read when they are due."""
    return images * index.content_bytes <= memory_bytes


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on the device; to CUDA from pinned memory, so that the host does not wait until it is there."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def expected(stream: Stream, positions: Iterable[Tensor], depth: int) -> Iterator[Tensor]:
    """The same positions, of which the stream is told `depth` reads ahead what will be read."""
    waiting: deque[Tensor] = deque()
    for position_B in positions:
        if depth:
            stream.expect(position_B)
        waiting.append(position_B)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def prefetch(read: Callable[[Tensor], Read], positions: Iterable[Tensor], workers: int) -> Iterator[Read]:
    """read(p) for each p, in order, read ahead by `workers` threads; 0 reads in the caller's thread.

    An error of `read` is raised where its batch was due. Closing the generator ends the threads.
    """
    if workers == 0:
        yield from map(read, positions)
        return
    positions = iter(positions)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    try:
        ahead = deque(pool.submit(read, position_B) for position_B in islice(positions, 2 * workers))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(read, position_B) for position_B in islice(positions, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
