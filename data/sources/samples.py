"""What a source gives: the images and labels of a split, in memory or in files of their own."""

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from tqdm import tqdm

from data.errors import printable
from data.sources.images import DamagedImageError, brightest, decode, has_more_frames, read_file

log = logging.getLogger(__name__)

_READERS = 8  # threads; more than cores, because files on a shared path answer late
_BLOCK = 64  # files of one task of a thread
_DARK = 0.25  # of white: a set without any brighter value is likely in another range than its format says


@dataclass(frozen=True)
class Samples:
    """The images of one split, in the order of the data set.

    images: n uint8 arrays (H, W) or (H, W, 3); any sequence that can be sliced and pickled. One that decodes
        when it is asked may raise DamagedImageError for an item, and then has their `names`.
    labels_N: (n,) int64, 0 .. classes - 1.
    sha256: of the content, images and labels. brightest: of image files, see `warn_if_dark`.
    """

    images: Sequence[np.ndarray]
    labels_N: np.ndarray
    classes: int
    sha256: str
    brightest: "Brightest | None" = None

    @classmethod
    def from_arrays(cls, images_NHW: np.ndarray, labels_N: np.ndarray, classes: int) -> "Samples":
        digest = hashlib.sha256(repr(images_NHW.shape).encode())
        digest.update(np.ascontiguousarray(images_NHW))
        digest.update(np.ascontiguousarray(labels_N, "<i8"))
        return cls(images_NHW, labels_N.astype(np.int64), classes, digest.hexdigest())

    @classmethod
    def from_files(cls, images: "ImageFiles", labels_N: np.ndarray, classes: int, progress: bool) -> "Samples":
        """Reads every file once, for its checksum; what cannot be read counts as such."""
        digest = hashlib.sha256()
        animated, bright = [], Brightest()
        shown = None if progress else True  # None: on a terminal
        found = _glances(images, bright)
        found = tqdm(found, total=len(images), unit=" files", desc=f"read {images.root}", delay=2, disable=shown)
        for name, label, (sha256, has_more) in zip(images.names, labels_N.tolist(), found, strict=True):
            digest.update(f"{name}\0{label}\0{sha256}\n".encode(errors="surrogateescape"))
            if has_more:
                animated.append(name)
        if animated:
            first = printable(animated[0])
            log.info("%d images have several frames, of which the first is used: first %s", len(animated), first)
        return cls(images, labels_N, classes, digest.hexdigest(), bright)

    def __getitem__(self, part: slice) -> "Samples":
        return Samples(self.images[part], self.labels_N[part], self.classes, self.sha256)


@dataclass(frozen=True)
class ImageFiles(Sequence):
    """Images in files of their own, decoded by the process that asks for them.

    root: the folder. names: the files, relative to it. crop: side of the centre square that is used, pixels;
    None: as large as fits. An item is (side, side, 3) uint8, or DamagedImageError.
    """

    root: Path
    names: tuple[str, ...]
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> "ImageFiles": ...
    def __getitem__(self, place):
        if isinstance(place, slice):
            return ImageFiles(self.root, self.names[place], self.crop)
        return decode(read_file(self.root / self.names[place]), self.crop)


class Brightest:
    """The brightest value of a set of images, and which one is white, as long as none is bright: one settles it.

    images: how many were looked at, all that can be decoded if they are dark.
    """

    def __init__(self):
        self.value, self.white, self.images = 0, 1, 0
        self._lock = threading.Lock()

    @property
    def share(self) -> float:
        return self.value / self.white

    def look(self, content: bytes) -> None:
        with self._lock:
            if self.share >= _DARK:
                return
            try:
                value, white = brightest(content)
            except DamagedImageError:  # it counts as such when it is its turn to be written
                return
            self.images += 1
            if value / white >= self.share:
                self.value, self.white = value, white


def warn_if_dark(splits: Iterable[Samples]) -> None:
    """Warn of a data set whose images are all dark, as 12 bits of brightness in files of 16 bits are."""
    found = [samples.brightest for samples in splits if samples.brightest]
    images = sum(bright.images for bright in found)
    most = max(found, key=lambda bright: bright.share, default=None)
    if images and most.share < _DARK:
        log.warning(
            "the brightest value of %s images is %s of %s: they stay so dark; if it should be white, scale them first",
            *(f"{number:,}" for number in (images, most.value, most.white)),
        )


def _glances(images: ImageFiles, bright: Brightest) -> Iterator[tuple[str, bool]]:
    """Of each file its SHA-256, or "unreadable", and whether it has more frames than one. `bright` looks at it."""
    blocks = [images.names[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]

    def glance(names: Sequence[str]) -> list[tuple[str, bool]]:
        found = []
        for name in names:
            try:
                content = read_file(images.root / name)
            except DamagedImageError:
                found.append(("unreadable", False))
            else:
                found.append((hashlib.sha256(content).hexdigest(), has_more_frames(content)))
                bright.look(content)
        return found

    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="checksum")
    try:
        for found in pool.map(glance, blocks):
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)


class Source(Protocol):
    """A data set. What is known without reading it, and `load`.

    splits: images of each split; empty when only its folder knows. channels: 1 (grey) or 3 (RGB).
    image_size: the side that is written unless another is asked for, pixels. embedded: there without a download
    or a folder. image_files: each image is a file in the user's folder, and may be damaged.
    """

    name: str
    splits: Mapping[str, int]
    channels: int
    image_size: int
    embedded: bool
    image_files: bool

    def load(self, folder: Path | None, progress: bool = False) -> dict[str, Samples]:
        """All splits, from `folder`, or without one from the source's own place. UserError if that fails."""
        ...
