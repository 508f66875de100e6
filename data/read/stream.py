"""The training sequence: which image comes at which place, and how it is read from its shard."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from data.batch import Batch
from data.errors import UserError
from data.patches import patchify
from data.randomness import permutation
from data.read.index import Index
from data.read.split_images import SplitImages

_CHUNK = 1024  # images that are read at once into memory
_READ_BYTES = 2**24  # of the tokens of one read from memory, where the work of a read, not its bytes, costs time


class Stream:
    """An endless sequence of the images of one split, or of a part of it, as tokens: pixels of patches, or their codes.

    Position n of the sequence is in epoch n // images; each epoch holds every image once, in an order that is
    a function of (seed, epoch) alone, or that of the part when the seed is None. The stream has no state: a run
    that counts the images it has seen resumes anywhere, on any number of ranks and threads.

    A split of at most `memory_bytes` is read once and stays, as it is stored, on `device`; a larger one is read at
    random. Both give the same batches. Every image is checked when it is read: for a damaged one the next sound
    one stands in, with its label.

    Raises UserError when the shards do not fit the index, no image is sound, or the images do not divide into
    patches.

    part_N: (images,) int64, the indices in the split of the images of the sequence; None: all, in file order.
    transform: of float32 (B, L, D), on the device: what is done to tokens last.

    images: images of an epoch. patches: L. Grey is repeated three times: D = 3 * patch_size^2; D of codes is theirs.
    """

    def __init__(
        self,
        index: Index,
        root: Path | str,
        split: str,
        *,
        patch_size: int,
        seed: int | None,
        part_N: Tensor | None = None,
        device: torch.device | str = "cpu",
        memory_bytes: int = 2**31,
        transform: Callable[[Tensor], Tensor] | None = None,
    ):
        if split not in index.splits:
            raise UserError(f"{root} has no split {split!r}, only {', '.join(index.splits)}")
        height, width, self._channels = index.image_shape
        if height != width or height % patch_size:
            raise UserError(f"{height}x{width} images do not divide into patches of {patch_size} pixels")
        self._part_N = torch.arange(index.images[split]) if part_N is None else part_N
        self.images = len(self._part_N)
        self.patches = (height // patch_size) ** 2
        self.device = torch.device(device)
        self._patch_size, self._transform, self._holds_codes = patch_size, transform, bool(index.codes)
        if index.codes and index.codes.patches != self.patches:
            raise UserError(
                f"{root} has {index.codes.patches} codes an image, not one for each of {self.patches} patches"
            )
        self._seed = seed
        self._orders: dict[int, Tensor] = {}  # of the last two epochs: a batch may cross the seam
        self._lock = threading.Lock()

        self._source = SplitImages(index, root, split, self._part_N.numpy())
        self._label_N = torch.from_numpy(self._source.label_N)
        self._content_NLD: Tensor | None = None  # uint8 pixels, grey is stored once; or float16 codes
        # Beside the steps, so that what is read ahead waits for none of them.
        self._beside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self.images * index.content_bytes <= memory_bytes:
            self._load(index)

    @property
    def damaged(self) -> dict[int, str]:
        """The damaged images found so far: the index in the data set, and one line that says where and why."""
        return self._source.damaged

    def damaged_error(self, limit: int) -> UserError:
        """For a run that accepts at most `limit` damaged images and found more."""
        return self._source.damaged_error(limit)

    def order(self, position_B: Tensor) -> Tensor:
        """The index in the data set, that is in its split, of each position: (B,) int64, on the CPU."""
        return self._part_N[self._place(position_B)]

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

    def reads_at_once(self, samples: int) -> int:
        """How many batches of so many images `read` best gives at once, to be split: several, from memory."""
        if self._content_NLD is None:
            return 1
        values = self._content_NLD[0].numel() * (3 if self._channels == 1 and not self._holds_codes else 1)
        return max(1, _READ_BYTES // (4 * values * samples))

    def _read_tokens(self, position_B: Tensor) -> Batch:
        place_B = self._place(position_B)
        if self._content_NLD is None:
            content_BLD, label_B = self._read(self._part_N[place_B])
            content_BLD, label_B = to_device(content_BLD, self.device), to_device(label_B, self.device)
        else:
            place_B = to_device(place_B, self.device)
            content_BLD, label_B = self._content_NLD.index_select(0, place_B), self._label_N[place_B]
        x_BLD = content_BLD.float()
        if not self._holds_codes:
            x_BLD = x_BLD / 255
            if self._channels == 1:
                x_BLD = torch.stack([x_BLD] * 3, dim=-1).flatten(2)
        if self._transform:
            x_BLD = self._transform(x_BLD)
        return Batch(x_BLD, to_device(position_B, self.device), label_B)

    def _place(self, position_B: Tensor) -> Tensor:
        """The place in the part, 0 .. images-1, of each position: (B,) int64, on the CPU."""
        position_B = position_B.cpu()
        turn_B = position_B % self.images
        if self._seed is None:
            return turn_B
        epoch_B = position_B // self.images
        place_B = torch.empty_like(turn_B)
        for epoch in epoch_B.unique().tolist():
            chosen_B = epoch_B == epoch
            place_B[chosen_B] = self._order_of(epoch)[turn_B[chosen_B]]
        return place_B

    def _order_of(self, epoch: int) -> Tensor:
        """(images,) int64: the permutation of one epoch."""
        with self._lock:  # threads that read ahead share the orders
            if epoch not in self._orders:
                if len(self._orders) == 2:
                    del self._orders[min(self._orders)]
                self._orders[epoch] = permutation(self._seed, "order", torch.tensor([epoch]), self.images)[0]
            return self._orders[epoch]

    def _read(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) as they are stored, uint8 or float16, and labels (B,) int64, from the shards."""
        content_BN, source_B = self._source.read(index_B.numpy())
        content_BN = torch.from_numpy(content_BN)
        tokens_BLD = content_BN if self._holds_codes else patchify(content_BN, self._patch_size)
        return tokens_BLD, self._label_N[source_B]

    def _load(self, index: Index) -> None:
        """Read all images of the sequence to the device; the shards are needed no more."""
        values = math.prod(index.content_shape) // self.patches
        content_NLD = torch.empty(
            (self.images, self.patches, values), dtype=torch.float16 if self._holds_codes else torch.uint8
        )
        label_N = torch.empty(self.images, dtype=torch.int64)
        for place_B in torch.arange(self.images).split(_CHUNK):
            content_NLD[place_B[0] : place_B[-1] + 1], label_N[place_B] = self._read(self._part_N[place_B])
        self._content_NLD, self._label_N = content_NLD.to(self.device), label_N.to(self.device)
        self._source.close()


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on the device; to CUDA from pinned memory, so that the host does not wait until it is there."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def prefetch(read: Callable[[Tensor], Batch], positions: Iterable[Tensor], workers: int) -> Iterator[Batch]:
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
