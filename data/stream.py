"""The training sequence: which image comes at which place, and how it is read from its shard."""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import records
from data.batch import Batch
from data.errors import UserError
from data.index import Index, open_shard, prepare_command
from data.patches import patchify
from data.randomness import permutation


class Stream:
    """An endless sequence of the images of one split, as tokens.

    Position n of the sequence is in epoch n // images; each epoch holds every image once, in an order that is
    a function of (seed, epoch) alone, or in file order when the seed is None. The stream has no state: a run
    that counts the images it has seen resumes anywhere, on any number of ranks and threads.

    A split of at most `memory_bytes` of uint8 pixels is read once and stays on `device`; a larger one is
    mapped and read at random. Both give the same batches.

    Raises UserError when the shards do not fit the index, or the images do not divide into patches.

    images: images of an epoch. patches: L. patch_dim: D = 3 * patch_size^2 (grey is repeated three times).
    """

    def __init__(
        self,
        index: Index,
        root: Path | str,
        split: str,
        *,
        patch_size: int,
        seed: int | None,
        device: torch.device | str = "cpu",
        memory_bytes: int = 2**31,
    ):
        if split not in index.splits:
            raise UserError(f"{root} has no split {split!r}, only {', '.join(index.splits)}")
        height, width, self._channels = index.image_shape
        if height != width or height % patch_size:
            raise UserError(f"{height}x{width} images do not divide into patches of {patch_size} pixels")
        self.images = index.images[split]
        self.patches = (height // patch_size) ** 2
        self.patch_dim = 3 * patch_size**2
        self.device = torch.device(device)
        self.damaged: dict[int, str] = {}
        self._patch_size = patch_size
        self._seed = seed
        self._orders: dict[int, Tensor] = {}  # of the last two epochs: a batch may cross the seam
        self._lock = threading.Lock()

        self._label_N = torch.empty(self.images, dtype=torch.int64)
        self._pixels_NLD: Tensor | None = None  # uint8; grey is stored once
        self._starts: list[int] = []  # of the mapped records, in the order of the split
        self._maps: list[np.ndarray] = []
        in_memory = self.images * index.image_bytes <= memory_bytes
        if in_memory:
            shape = (self.images, self.patches, patch_size**2 * self._channels)
            self._pixels_NLD = torch.empty(shape, dtype=torch.uint8)
        start = 0
        for images_BHWC, label_B in _each_record(index, Path(root), split, in_memory):
            stop = start + len(label_B)
            self._label_N[start:stop] = torch.from_numpy(label_B)
            if in_memory:
                self._pixels_NLD[start:stop] = patchify(torch.from_numpy(images_BHWC), patch_size)
            else:
                self._starts.append(start)
                self._maps.append(images_BHWC)
            start = stop
        self._label_N = self._label_N.to(self.device)
        if in_memory:
            self._pixels_NLD = self._pixels_NLD.to(self.device)

    def order(self, position_B: Tensor) -> Tensor:
        """The index in the data set, 0 .. images-1, of each position: (B,) int64, on the CPU."""
        position_B = position_B.cpu()
        place_B = position_B % self.images
        if self._seed is None:
            return place_B
        epoch_B = position_B // self.images
        index_B = torch.empty_like(place_B)
        for epoch in epoch_B.unique().tolist():
            chosen_B = epoch_B == epoch
            index_B[chosen_B] = self._order_of(epoch)[place_B[chosen_B]]
        return index_B

    def read(self, position_B: Tensor) -> Batch:
        """The images at these positions ((B,) int64, best on the CPU), on the stream's device."""
        index_B = self.order(position_B)
        if self._pixels_NLD is None:
            pixels_BLD = patchify(self._gather(index_B), self._patch_size).to(self.device)
            index_B = index_B.to(self.device)
        else:
            index_B = index_B.to(self.device)
            pixels_BLD = self._pixels_NLD.index_select(0, index_B)
        x_BLD = pixels_BLD.float() / 255
        if self._channels == 1:
            x_BLD = torch.stack([x_BLD] * 3, dim=-1).flatten(2)
        return Batch(x_BLD, position_B.to(self.device), self._label_N[index_B])

    def _order_of(self, epoch: int) -> Tensor:
        """(images,) int64: the permutation of one epoch."""
        with self._lock:  # threads that read ahead share the orders
            if epoch not in self._orders:
                if len(self._orders) == 2:
                    del self._orders[min(self._orders)]
                self._orders[epoch] = permutation(self._seed, "order", torch.tensor([epoch]), self.images)[0]
            return self._orders[epoch]

    def _gather(self, index_B: Tensor) -> Tensor:
        """(B, H, W, C) uint8 from the mapped records."""
        rows = []
        for index in index_B.tolist():
            record = bisect_right(self._starts, index) - 1
            rows.append(self._maps[record][index - self._starts[record]])
        return torch.from_numpy(np.stack(rows))


def _each_record(index: Index, root: Path, split: str, in_memory: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (B, H, W, C) uint8, read or mapped, and labels (B,) int64 of each record, in order."""
    images_of = records.read_images if in_memory else records.map_images
    for shard in index.splits[split]:
        with open_shard(root, index, shard) as file:
            for record in shard.records:
                try:
                    images_BHWC, label_B = images_of(file, record, index), records.read_labels(file, record)
                except ValueError as error:
                    place = f"{root / shard.name}: record {record.key}: {error}"
                    mend = prepare_command(index.source, root, "--overwrite")
                    raise UserError(f"{place}; write the shards again with {mend}") from None
                yield images_BHWC, label_B


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
