"""MNIST's idx files, and data sets that come in them."""

import gzip
import hashlib
import http.client
import math
import os
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from data.errors import UserError
from data.files import aside_of, cache_folder
from data.sources.samples import Samples

_DOWNLOAD_BYTES = 64 * 2**20  # no file that is downloaded is larger
_TIMEOUT_S = 30.0  # of one connection or read


@dataclass(frozen=True)
class IdxSource:
    """Grey images in MNIST's idx files: <part>-images-idx3-ubyte and <part>-labels-idx1-ubyte, or with .idx for -idx.

    mirrors: base URLs that hold the .gz files. md5: of the .gz files, by name without .gz. torchvision: the
    folder that torchvision keeps them in, with raw/ below. side: height and width of the images, pixels.
    """

    name: str
    mirrors: tuple[str, ...]
    md5: Mapping[str, str]
    torchvision: str
    splits: Mapping[str, int]
    side: int = 28
    classes: int = 10
    channels: ClassVar[int] = 1
    image_size: ClassVar[int] = 32
    embedded: ClassVar[bool] = False
    image_files: ClassVar[bool] = False

    def load(self, folder: Path | None, progress: bool = False) -> dict[str, Samples]:
        """From a folder with the files, .gz or not, or from the cache, which a download fills."""
        folder = self._download(progress) if folder is None else self._find(folder)
        loaded = {}
        for split, count in self.splits.items():
            images, labels = _idx_names(split)
            images_NHW = read_idx(_existing(folder, images), (count, self.side, self.side))
            labels_N = read_idx(_existing(folder, labels), (count,))
            if labels_N.max() >= self.classes:
                raise UserError(f"{_existing(folder, labels)} holds label {labels_N.max()} of {self.classes} classes")
            loaded[split] = Samples.from_arrays(images_NHW, labels_N, self.classes)
        return loaded

    def _find(self, folder: Path) -> Path:
        names = [name for split in self.splits for name in _idx_names(split)]
        for place in (folder, folder / "raw", folder / self.torchvision / "raw"):
            if all(_existing(place, name) for name in names):
                return place
        raise UserError(
            f"{folder} and {folder / self.torchvision / 'raw'} do not hold {', '.join(names)} (.gz or not, also spelled"
            " .idx): give their folder with --source, or leave --source away to download them"
        )

    def _download(self, progress: bool) -> Path:
        cache = cache_folder() / self.name
        try:
            cache.mkdir(parents=True, exist_ok=True)
            for name, md5 in self.md5.items():
                path = cache / f"{name}.gz"
                if not path.exists() or _md5(path) != md5:
                    _download_from_any(self.mirrors, path, md5, progress)
        except OSError as error:
            raise UserError(f"cannot write the downloads to {cache}: {error.strerror}") from error
        return cache


def _idx_names(split: str) -> tuple[str, str]:
    part = {"train": "train", "test": "t10k"}[split]
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _existing(folder: Path, name: str) -> Path | None:
    """A file of this name, packed or not, in the spelling of the official .gz files or in that of what they hold."""
    names = (f"{spelled}{suffix}" for spelled in (name, name.replace("-idx", ".idx")) for suffix in (".gz", ""))
    return next((folder / found for found in names if (folder / found).is_file()), None)


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an idx file (.gz or not), which must have exactly this shape.

    No more is read than the shape allows, whatever the file claims. Raises UserError.
    """
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 0x08, len(shape), *shape)  # 8: unsigned bytes
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(size + 1)  # one more: reaching the end makes gzip check its CRC
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if content[: len(header)] != header:
        raise UserError(f"{path} is no idx file of {'x'.join(map(str, shape))} bytes: its header is another")
    if len(content) != size:
        found = "more" if len(content) > size else f"only {len(content):,}"
        raise UserError(f"{path} should unpack to {size:,} bytes but has {found}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _download_from_any(mirrors: Sequence[str], path: Path, md5: str, progress: bool) -> None:
    """Download path.name from the first mirror that has it with this md5. UserError if none does."""
    faults = []
    for mirror in mirrors:
        url = f"{mirror}/{path.name}"
        try:
            _download(url, path, md5, progress)
            return
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            faults.append(f"{url}: {getattr(error, 'reason', None) or error}")
        except _WrongFileError as error:
            faults.append(f"{url}: {error}")
    remedy = "fetch it by other means and give its folder with --source"
    raise UserError(f"cannot download {path.name} ({'; '.join(faults)}): {remedy}")


class _WrongFileError(Exception):
    """What a mirror sent is not the file."""


def _download(url: str, path: Path, md5: str, progress: bool) -> None:
    """Written aside and renamed, so that `path` is there only when it is complete and right."""
    digest = hashlib.md5(usedforsecurity=False)
    with ExitStack() as stack:
        answer = stack.enter_context(urllib.request.urlopen(url, timeout=_TIMEOUT_S))
        length = int(answer.headers.get("Content-Length") or 0)
        aside = aside_of(path)
        stack.callback(aside.unlink, missing_ok=True)
        file = stack.enter_context(aside.open("wb"))
        shown = None if progress else True  # None: on a terminal
        bar = stack.enter_context(tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name, disable=shown))
        while chunk := answer.read(2**16):
            digest.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > _DOWNLOAD_BYTES:
                raise _WrongFileError(f"more than {_DOWNLOAD_BYTES:,} bytes")
        if file.tell() < length:
            raise _WrongFileError(f"cut short at {file.tell():,} of {length:,} bytes")
        if digest.hexdigest() != md5:
            raise _WrongFileError(f"md5 {digest.hexdigest()} instead of {md5}")
        file.flush()
        os.fsync(file.fileno())
        os.replace(aside, path)


MNIST = IdxSource(
    name="mnist",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    md5={
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    torchvision="MNIST",
    splits={"train": 60_000, "test": 10_000},
)
FASHION_MNIST = IdxSource(
    name="fashion_mnist",
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
    ),
    md5={
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    torchvision="FashionMNIST",
    splits={"train": 60_000, "test": 10_000},
)
