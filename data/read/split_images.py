"""The images of one split, or their codes, each checked when it is read; a sound one stands in for a damaged one."""

import math
import threading
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
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
_MOST_OPEN = 512  # shards; with labels and CRC-32 of all their images, 12 bytes each


@dataclass(frozen=True)
class _Place:
    """Where a record lies: its open shard, its first byte of content in there, its first image in the split."""

    file: StoredFile
    shard: Shard
    record: Record
    offset: int
    first: int


class _Opened(NamedTuple):
    """A shard: its first image in the split, where each record lies, labels and CRC-32 of its images, both (N,)."""

    first: int
    places: list[_Place]
    label_N: np.ndarray
    crc32_N: np.ndarray


def _open(index: Index, root: Path | str, shard: Shard, first: int) -> _Opened:
    """Raises UserError when it does not fit the index."""
    file = open_shard(root, index, shard)
    places, labels, checksums, next_first = [], [], [], first
    for record in shard.records:
        try:
            places.append(_Place(file, shard, record, records.first_content(file, record, index), next_first))
            labels.append(records.read_labels(file, record))
            checksums.append(records.read_checksums(file, record))
        except ValueError as error:
            file.close()
            place = f"{root}/{shard.name}: record {record.key}: {error}"
            raise UserError(f"{place}; {index.remedy(root)}") from None
        except OSError as error:
            file.close()
            raise out_of_reach(f"{root}/{shard.name}", error.strerror) from None
        next_first += record.count
    return _Opened(first, places, np.concatenate(labels), np.concatenate(checksums))


class SplitImages(SoundImages):
    """The images of our own shards. Damaged are those whose bytes cannot be read, or whose CRC-32 is another one now.

    Up to 512 shards are opened at once, and refused where they do not fit the index; of more, each when an image of it
    is read, and the last 512 stay open. Raises UserError when a shard does not fit, when one elsewhere is out of reach,
    and when no image of the part is sound.

    cache: for shards that lie elsewhere, which are fetched in blocks of neighbours.
    """

    def __init__(self, index: Index, root: Path | str, split: str, part: Part, cache: BlockCache):
        super().__init__(index.images[split], index.content_shape, index.content_dtype, part)
        self._index, self._root, self._split = index, root, split
        self._remedy = index.remedy(root)
        self._cache = cache
        self._blocks = None if is_local(root) else Blocks(self._fetch, most=4 * Weave.lanes * Weave.window)
        self._shards = index.splits[split]
        self._firsts = np.cumsum([0, *(shard.images for shard in self._shards)])[:-1].tolist()
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        self._opening = threading.Lock()
        self._close = weakref.finalize(self, _close, self._open)
        if len(self._shards) <= _MOST_OPEN:
            with ThreadPoolExecutor(1 if is_local(root) else _OPENERS) as pool:
                opened = pool.map(partial(_open, index, root), self._shards, self._firsts)
                for number, each in enumerate(opened):
                    self._open[number] = each

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
        opened, place = self._find(index)
        label = opened.label_N[index - opened.first]
        content = memoryview(content_N).cast("B")
        try:  # a cut file is just a short read
            count = self._read_into(content, index, place)
        except OSError as error:
            raise DamagedImageError(f"cannot be read ({error.strerror})") from None
        if count < len(content):
            raise DamagedImageError(f"cut short, {count} of {len(content)} bytes")
        if zlib.crc32(label.tobytes(), zlib.crc32(content)) != opened.crc32_N[index - opened.first]:
            raise DamagedImageError("its CRC-32 is not the one that was written")
        return label

    def _read_into(self, content: memoryview, index: int, place: _Place) -> int:
        """How many bytes of the image there were."""
        if self._blocks is None:
            return place.file.read_into(content, place.offset + (index - place.first) * len(content))
        start, stop = self._block_of(index)
        block = self._blocks.take((start, stop), times=stop - start)
        first = (index - start) * len(content)
        found = block[first : first + len(content)]
        content[: len(found)] = found
        return len(found)

    def _block_of(self, index: int) -> tuple[int, int]:
        """An image's neighbours in its record, that are fetched with it."""
        _, place = self._find(index)
        start = place.first + (index - place.first) // Weave.block * Weave.block
        return start, min(start + Weave.block, place.first + place.record.count)

    def _fetch(self, block: tuple[int, int]) -> memoryview:
        """The content of some neighbours. UserError when it cannot be had: they may be sound."""
        start, stop = block
        _, place = self._find(start)
        size = self.content_dtype.itemsize * math.prod(self.content_shape)
        address = f"{self._root}/{place.shard.name}"

        def ask() -> memoryview:
            content = memoryview(bytearray((stop - start) * size))
            try:
                count = place.file.read_into(content, place.offset + (start - place.first) * size)
            except OSError as error:
                raise out_of_reach(address, error.strerror) from None
            return content[:count]

        key = f"{address} {place.shard.sha256} {place.offset} {start - place.first} {stop - place.first}"
        return self._cache.get(key, ask)

    def _find(self, index: int) -> tuple[_Opened, _Place]:
        """The shard and the record of an image."""
        number = bisect_right(self._firsts, index) - 1
        opened = self._open.get(number)
        if opened is None:
            opened = self._open_another(number)
        return opened, opened.places[bisect_right(opened.places, index, key=lambda place: place.first) - 1]

    def _open_another(self, number: int) -> _Opened:
        opened = _open(self._index, self._root, self._shards[number], self._firsts[number])
        with self._opening:
            while len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)  # closed when nobody reads it any more
            self._open[number] = opened
        return opened

    def _name(self, index: int) -> str:
        _, place = self._find(index)
        where = f"{place.shard.name}, record {place.record.key}, place {index - place.first}"
        return f"{self._split} image {index} ({where})"


def _close(opened: dict[int, _Opened]) -> None:
    for each in opened.values():
        each.places[0].file.close()
