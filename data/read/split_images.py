"""The images of one split, or their codes, each checked when it is read; a sound one stands in for a damaged one."""

import logging
import threading
import weakref
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.read import records
from data.read.index import Index, open_shard
from data.read.storage import StoredFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """Where a record lies: its open shard, its first byte of content in there, its first image in the split."""

    file: StoredFile
    shard: str
    key: str
    offset: int
    first: int


class SplitImages:
    """Random access to the images of a split, or of a part of it, from any thread.

    A damaged image (its bytes cannot be read, or have another CRC-32 than was written) is replaced by the next
    sound one of the part, index + 1, + 2, ..., around the end of the split: the same on every rank. It is logged once.

    Raises UserError when a shard does not fit the index, and when no image of the part is sound.

    part_N: (N,) int64, the indices in the split of the images that are read; None: all. images: of the whole split.
    label_N: (images,) int64, as they stand in the shards. damaged: index in the split to one line that says where the
    image lies and why it cannot be used, of the damaged images found so far.
    """

    def __init__(self, index: Index, root: Path | str, split: str, part_N: np.ndarray | None = None):
        self.images = index.images[split]
        self.content_shape, self.content_dtype = index.content_shape, index.content_dtype
        self.damaged: dict[int, str] = {}
        self._root, self._split = Path(root), split
        self._is_part_N = np.zeros(self.images, bool)
        self._is_part_N[slice(None) if part_N is None else part_N] = True
        self._remedy = index.remedy(root)
        self._lock = threading.Lock()
        self._places: list[_Place] = []
        self._firsts: list[int] = []
        files: list[StoredFile] = []
        self.close = weakref.finalize(self, _close, files)

        label_parts, crc32_parts = [], []
        first = 0
        for shard in index.splits[split]:
            file = open_shard(root, index, shard)
            files.append(file)
            for record in shard.records:
                try:
                    offset = records.first_content(file, record, index)
                    label_parts.append(records.read_labels(file, record))
                    crc32_parts.append(records.read_checksums(file, record))
                except ValueError as error:
                    place = f"{self._root / shard.name}: record {record.key}: {error}"
                    raise UserError(f"{place}; {self._remedy}") from None
                self._places.append(_Place(file, shard.name, record.key, offset, first))
                self._firsts.append(first)
                first += record.count
        self.label_N = np.concatenate(label_parts)
        self._crc32_N = np.concatenate(crc32_parts)

    def read(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, H, W, C) uint8 or codes (B, L, D) float16, and (B,) int64 which images of the split these are."""
        content_BN = np.empty((len(index_B), *self.content_shape), self.content_dtype)
        source_B = np.empty(len(index_B), np.int64)
        for row, index in enumerate(index_B.tolist()):
            source_B[row] = self._read_sound(index, content_BN[row])
        return content_BN, source_B

    def damaged_error(self, limit: int) -> UserError:
        """For a run that accepts at most `limit` damaged images and found more."""
        with self._lock:  # threads may go on reading
            count, first = len(self.damaged), self.damaged[min(self.damaged)]
        return UserError(
            f"damaged images in split {self._split} of {self._root}: {count}, more than data.max_damaged={limit}"
            f" (first: {first}): {self._remedy}, or raise data.max_damaged"
        )

    def _read_sound(self, index: int, content_N: np.ndarray) -> int:
        """Read an image, or the one that stands in for it, and return the index of what was read."""
        faults = {}
        for step in range(self.images):
            sound = (index + step) % self.images
            if sound in self.damaged or not self._is_part_N[sound]:
                continue
            fault = self._fault(sound, content_N)
            if fault is None:
                break
            faults[sound] = fault
        else:
            raise UserError(f"{self._root} has no sound image in split {self._split}: {self._remedy}")
        with self._lock:
            for damaged, fault in faults.items():
                if damaged not in self.damaged:  # another thread may have met it, too
                    self.damaged[damaged] = f"{self._name(damaged)}: {fault}"
                    log.warning("%s; image %d stands in", self.damaged[damaged], sound)
        return sound

    def _fault(self, index: int, content_N: np.ndarray) -> str | None:
        """Read an image; why it is damaged, or None."""
        place = self._place(index)
        content = memoryview(content_N).cast("B")
        try:  # a cut file is just a short read
            count = place.file.read_into(content, place.offset + (index - place.first) * len(content))
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if count < len(content):
            return f"cut short, {count} of {len(content)} bytes"
        if zlib.crc32(self.label_N[index].tobytes(), zlib.crc32(content)) != self._crc32_N[index]:
            return "its CRC-32 is not the one that was written"
        return None

    def _place(self, index: int) -> _Place:
        return self._places[bisect_right(self._firsts, index) - 1]

    def _name(self, index: int) -> str:
        place = self._place(index)
        return f"{self._split} image {index} ({place.shard}, record {place.key}, place {index - place.first})"


def _close(files: list[StoredFile]) -> None:
    for file in files:
        file.close()
