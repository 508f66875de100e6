"""The images of one split, or their codes, each checked when it is read; a sound one stands in for a damaged one."""

import math
import weakref
import zlib
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import UserError
from data.order.parts import Part
from data.order.weave import Weave
from data.read import records
from data.read.index import Index, Record, Shard, open_shard
from data.read.sound import SoundImages
from data.sources.images import DamagedImageError
from data.storage.blocks import Blocks
from data.storage.cache import BlockCache
from data.storage.storage import StoredFile, is_local, out_of_reach

_OPENERS = 16  # threads that wait for answers, of shards that lie elsewhere


@dataclass(frozen=True)
class _Place:
    """Where a record lies: its open shard, its first byte of content in there, its first image in the split."""

    file: StoredFile
    shard: Shard
    record: Record
    offset: int
    first: int


class _Opened(NamedTuple):
    """A shard, with where the content of each record begins, and labels and CRC-32 of its images."""

    file: StoredFile
    offsets: list[int]
    label_parts: list[np.ndarray]
    crc32_parts: list[np.ndarray]


def _open(index: Index, root: Path | str, shard: Shard) -> _Opened:
    """Raises UserError when it does not fit the index."""
    file = open_shard(root, index, shard)
    opened = _Opened(file, [], [], [])
    for record in shard.records:
        try:
            opened.offsets.append(records.first_content(file, record, index))
            opened.label_parts.append(records.read_labels(file, record))
            opened.crc32_parts.append(records.read_checksums(file, record))
        except ValueError as error:
            file.close()
            place = f"{root}/{shard.name}: record {record.key}: {error}"
            raise UserError(f"{place}; {index.remedy(root)}") from None
        except OSError as error:
            file.close()
            raise out_of_reach(f"{root}/{shard.name}", error.strerror) from None
    return opened


class SplitImages(SoundImages):
    """The images of our own shards. Damaged are those whose bytes cannot be read, or whose CRC-32 is another one now.

    Raises UserError when a shard does not fit the index, when one elsewhere is out of reach, and when no image of the
    part is sound.

    cache: for shards that lie elsewhere, which are fetched in blocks of neighbours. label_N: (images,) int64, as they
    stand in the shards.
    """

    def __init__(self, index: Index, root: Path | str, split: str, part: Part, cache: BlockCache):
        super().__init__(index.images[split], index.content_shape, index.content_dtype, part)
        self._root, self._split = root, split
        self._remedy = index.remedy(root)
        self._places: list[_Place] = []
        self._firsts: list[int] = []
        self._cache = cache
        self._blocks = None if is_local(root) else Blocks(self._fetch, most=4 * Weave.lanes * Weave.window)
        files: list[StoredFile] = []
        self._close = weakref.finalize(self, _close, files)

        label_parts, crc32_parts = [], []
        first = 0
        shards = index.splits[split]
        with ThreadPoolExecutor(1 if is_local(root) else _OPENERS) as pool:
            for shard, opened in zip(shards, pool.map(partial(_open, index, root), shards), strict=True):
                files.append(opened.file)
                label_parts += opened.label_parts
                crc32_parts += opened.crc32_parts
                for record, offset in zip(shard.records, opened.offsets, strict=True):
                    self._places.append(_Place(opened.file, shard, record, offset, first))
                    self._firsts.append(first)
                    first += record.count
        self.label_N = np.concatenate(label_parts)
        self._crc32_N = np.concatenate(crc32_parts)

    def damaged_error(self, limit: int) -> UserError:
        count, first = self._first_damaged()
        return UserError(
            f"damaged images in split {self._split} of {self._root}: {count}, more than data.max_damaged={limit}"
            f" (first: {first}): {self._remedy}, or raise data.max_damaged"
        )

    def expect(self, index_B: np.ndarray) -> None:
        if self._blocks is not None:  # a disk answers at once
            self._blocks.expect({self._block_of(index) for index in index_B.tolist()})

    def close(self) -> None:
        if self._blocks is not None:
            self._blocks.close()
        self._close()

    def _none_sound(self) -> UserError:
        return UserError(f"{self._root} has no sound image in split {self._split}: {self._remedy}")

    def _read_image(self, index: int, content_N: np.ndarray) -> int:
        place, label = self._place(index), self.label_N[index]
        content = memoryview(content_N).cast("B")
        try:  # a cut file is just a short read
            count = self._read_into(content, index, place)
        except OSError as error:
            raise DamagedImageError(f"cannot be read ({error.strerror})") from None
        if count < len(content):
            raise DamagedImageError(f"cut short, {count} of {len(content)} bytes")
        if zlib.crc32(label.tobytes(), zlib.crc32(content)) != self._crc32_N[index]:
            raise DamagedImageError("its CRC-32 is not the one that was written")
        return label

    def _read_into(self, content: memoryview, index: int, place: _Place) -> int:
        """How many bytes of the image there were."""
        if self._blocks is None:
            return place.file.read_into(content, place.offset + (index - place.first) * len(content))
        number, start, stop = self._block_of(index)
        block = self._blocks.take((number, start, stop), times=stop - start)
        first = (index - place.first - start) * len(content)
        found = block[first : first + len(content)]
        content[: len(found)] = found
        return len(found)

    def _block_of(self, index: int) -> tuple[int, int, int]:
        """The number of a record, and the places in it of an image's neighbours that are fetched with it."""
        number = bisect_right(self._firsts, index) - 1
        start = (index - self._firsts[number]) // Weave.block * Weave.block
        return number, start, min(start + Weave.block, self._places[number].record.count)

    def _fetch(self, block: tuple[int, int, int]) -> memoryview:
        """The content of some neighbours. UserError when it cannot be had: they may be sound."""
        number, start, stop = block
        place, size = self._places[number], self.content_dtype.itemsize * math.prod(self.content_shape)
        address = f"{self._root}/{place.shard.name}"

        def ask() -> memoryview:
            content = memoryview(bytearray((stop - start) * size))
            try:
                count = place.file.read_into(content, place.offset + start * size)
            except OSError as error:
                raise out_of_reach(address, error.strerror) from None
            return content[:count]

        return self._cache.get(f"{address} {place.shard.sha256} {place.offset} {start} {stop}", ask)

    def _place(self, index: int) -> _Place:
        return self._places[bisect_right(self._firsts, index) - 1]

    def _name(self, index: int) -> str:
        place = self._place(index)
        where = f"{place.shard.name}, record {place.record.key}, place {index - place.first}"
        return f"{self._split} image {index} ({where})"


def _close(files: list[StoredFile]) -> None:
    for file in files:
        file.close()
