"""The images of a split of tar files, fetched in blocks of neighbours and decoded when they are read."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import partial

import numpy as np

from data.errors import UserError, printable
from data.order.parts import Part
from data.read.sound import SoundImages
from data.sources.images import decode, resize
from data.storage.addresses import split_address
from data.storage.blocks import Blocks
from data.storage.cache import BlockCache
from data.storage.storage import is_local, out_of_reach, storage_of
from data.tars.manifest import Tar, TarIndex
from data.tars.sidecar import Rows, SidecarReader

_GAP_BYTES = 2**16  # between two images, that are fetched with them rather than skipped by another request


@dataclass
class _Run:
    """Bytes of a file that are fetched at once. held: themselves, where no disk of this machine keeps them."""

    tar: Tar
    start: int
    stop: int
    held: memoryview | None


@dataclass(frozen=True)
class _Block:
    """Neighbouring images of a split. first: the index of the first. places: of each its run, start and stop."""

    first: int
    places: list[tuple[_Run, int, int]]
    label_N: np.ndarray


class TarImages(SoundImages):
    """Damaged are images that cannot be decoded. Raises UserError when a file cannot be read, or is another one by now.

    cache: for what lies elsewhere.
    """

    def __init__(self, index: TarIndex, split: str, part: Part, cache: BlockCache):
        super().__init__(index.images[split], index.content_shape, index.content_dtype, part)
        self._index, self._split, self._cache = index, split, cache
        self._first_N = index.first_N[split].tolist()
        weave = index.manifest.weave
        self._block_images = weave.block
        self._blocks: Blocks[int, _Block] = Blocks(self._fetch_block, most=4 * weave.lanes * weave.window)
        self._sidecars = storage_of(index.folder)
        self._readers: dict[int, SidecarReader] = {}

    def expect(self, index_B: np.ndarray) -> None:
        self._blocks.expect(np.unique(index_B // self._block_images).tolist())

    def close(self) -> None:
        self._blocks.close()

    def damaged_error(self, limit: int) -> UserError:
        count, first = self._first_damaged()
        return UserError(
            f"damaged images in split {self._split}: {count}, more than data.max_damaged={limit} (first: {first}):"
            f" {self._index.remedy(self._index.manifest.shards)}, or raise data.max_damaged"
        )

    def _none_sound(self) -> UserError:
        return UserError(f"no image of split {self._split} in {self._index.manifest.shards} can be decoded")

    def _read_image(self, index: int, content_N: np.ndarray) -> int:
        number = index // self._block_images
        block = self._blocks.take(number, times=min(self._block_images, self.images - number * self._block_images))
        place = index - block.first
        image_HWC = decode(bytes(self._content(*block.places[place])))
        content_N[...] = resize(image_HWC, len(content_N))
        return int(block.label_N[place])

    def _name(self, index: int) -> str:
        place = bisect_right(self._first_N, index) - 1
        tar = self._index.tars[place]
        row = tar.first_row(self._split) + index - self._first_N[place]
        return f"{self._split} image {index} ({printable(tar.name)}, image {row} of its index)"

    def _fetch_block(self, number: int) -> _Block:
        first = number * self._block_images
        stop = min(first + self._block_images, self.images)
        places, labels, index = [], [], first
        while index < stop:
            place = bisect_right(self._first_N, index) - 1
            tar = self._index.tars[place]
            start = index - self._first_N[place]
            count = min(stop - index, getattr(tar, self._split) - start)
            first_row = tar.first_row(self._split) + start
            rows = self._reader(place).rows(first_row, first_row + count)
            places += self._fetch_rows(tar, rows)
            labels.append(rows.label_N)
            index += count
        return _Block(first, places, np.concatenate(labels))

    def _reader(self, place: int) -> SidecarReader:
        reader = self._readers.get(place)
        if not reader:
            tar = self._index.tars[place]
            reader = SidecarReader(self._sidecars, tar.sidecar, tar.train + tar.test, tar.bytes)
            self._readers[place] = reader
        return reader

    def _fetch_rows(self, tar: Tar, rows: Rows) -> list[tuple[_Run, int, int]]:
        """Where each image is; those with little between them come together."""
        start_N, stop_N = rows.offset_N, rows.offset_N + rows.bytes_N
        is_new_N = np.append(True, start_N[1:] - np.maximum.accumulate(stop_N)[:-1] > _GAP_BYTES)
        places: list[tuple[_Run, int, int]] = []
        for these_N in np.split(np.arange(len(start_N)), np.flatnonzero(is_new_N)[1:]):
            low, high = int(start_N[these_N].min()), int(stop_N[these_N].max())
            run = self._fetch(tar, low, high)
            ends = zip(start_N[these_N].tolist(), stop_N[these_N].tolist(), strict=True)
            places += [(run, start, stop) for start, stop in ends]
        return places

    def _fetch(self, tar: Tar, start: int, stop: int) -> _Run:
        """See to it that some bytes of a tar are on this machine: on a disk, or else in memory."""
        if is_local(tar.address):
            folder, name = split_address(tar.address)
            try:
                storage_of(folder).expect(name, start, stop)
            except OSError as error:
                raise out_of_reach(tar.address, error.strerror) from None
            return _Run(tar, start, stop, None)
        run = _Run(tar, start, stop, None)
        if self._kept(run, start, start) is None:
            content = self._bring(run)
            if self._kept(run, start, start) is None:
                run.held = content
        return run

    def _content(self, run: _Run, start: int, stop: int) -> memoryview:
        """The bytes of an image, which lie in a run that was fetched."""
        if is_local(run.tar.address):
            return self._ask(run.tar, start, stop)
        if run.held is None:
            if (kept := self._kept(run, start, stop)) is not None:
                return kept
            run.held = self._bring(run)  # it has gone from the disk since, and would go again
        return run.held[start - run.start : stop - run.start]

    def _bring(self, run: _Run) -> memoryview:
        """The bytes of a run; they are on the disk of this node then, if it keeps them."""
        if run.tar.gives_parts:
            return self._cache.get(self._key(run), partial(self._ask, run.tar, run.start, run.stop))
        content = self._cache.get(self._key(run), partial(self._ask, run.tar, 0, None), run.start, run.stop)
        return memoryview(bytes(content))  # not the whole of a file

    def _kept(self, run: _Run, start: int, stop: int) -> memoryview | None:
        """Some bytes of a run from the disk of this node, if they are there."""
        first = run.start if run.tar.gives_parts else 0
        return self._cache.kept(self._key(run), start - first, stop - first)

    def _key(self, run: _Run) -> str:
        """Of what is fetched at once, in the cache."""
        whole = f"{run.tar.address} {run.tar.bytes} {run.tar.tag}"
        return f"{whole} {run.start} {run.stop}" if run.tar.gives_parts else whole

    def _ask(self, tar: Tar, start: int, stop: int | None) -> memoryview:
        """The answer, which must be of the file that was indexed."""
        folder, name = split_address(tar.address)
        try:
            found = storage_of(folder).fetch(name, start, stop)
        except OSError as error:
            raise out_of_reach(tar.address, error.strerror) from None
        if (found.size, found.tag) != (tar.bytes, tar.tag):
            again = f"index the shards again with {self._index.command('--overwrite')}"
            raise UserError(f"{printable(tar.address)} has changed since it was indexed: {again}")
        if len(found.content) != (tar.bytes if stop is None else stop) - start:
            raise out_of_reach(tar.address, "the answer broke off")
        return found.content
