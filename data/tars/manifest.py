"""What a data set of tar files is: its files, how many images each holds, and in which order they are read."""

import hashlib
import shlex
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data.errors import UserError, printable
from data.order.weave import Weave
from data.read.index import Count, Place, Replaced, Sha256
from data.storage.addresses import TARS, split_address
from data.storage.cache import BlockCache
from data.storage.storage import storage_of

if TYPE_CHECKING:
    from torch import Tensor

    from data.order.order import Order
    from data.order.parts import Part
    from data.tars.images import TarImages

MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "test")
_MANIFEST_BYTES = 2**30


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tar(_Model):
    """One file of the data set: where it lies, what it was when it was indexed, and the file with its rows.

    gives_parts: whether whoever holds it gives parts of it, or the whole alone. train, test: its images of each split.
    """

    address: str
    bytes: Count
    tag: str
    gives_parts: bool
    train: Place
    test: Place
    sidecar: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.safetensors$")]
    rows_sha256: Sha256

    @property
    def name(self) -> str:
        return split_address(self.address)[1]

    def first_row(self, split: str) -> int:
        """Of the split's images, which those to train on precede."""
        return self.train if split == "test" else 0


class Manifest(_Model):
    """What was asked for (shards, test_shards, label_field), and what was found.

    classes: labels are 0 .. classes - 1. left_out: samples that could not be used.
    """

    version: Literal[1] = 1
    shards: str
    test_shards: str | None
    label_field: str | None
    classes: Count
    left_out: Place
    weave: Weave
    tars: Annotated[tuple[Tar, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _both_splits(self) -> "Manifest":
        if not sum(tar.train for tar in self.tars) or not sum(tar.test for tar in self.tars):
            raise ValueError("no images to train on, or none to test with")
        return self


class TarIndex:
    """A manifest as the index of images of one size: what `data.read.index.Index` says of shards of our own.

    Every image is RGB, its centre square resized. folder: of the manifest, with the sidecars.
    """

    source = TARS
    codes = None

    def __init__(self, manifest: Manifest, folder: str, image_size: int):
        self.manifest, self.folder = manifest, folder
        self.image_shape = self.content_shape = (image_size, image_size, 3)
        self.content_dtype = np.dtype("u1")
        self.content_bytes = 3 * image_size**2
        self.classes = manifest.classes
        self.tars = manifest.tars
        count_SN = np.array([[getattr(tar, split) for tar in self.tars] for split in SPLITS], np.int64)
        self.first_N = {split: np.cumsum(count_N) - count_N for split, count_N in zip(SPLITS, count_SN, strict=True)}
        self.images = {split: int(count_N.sum()) for split, count_N in zip(SPLITS, count_SN, strict=True)}

    @property
    def checksum(self) -> str:
        """Identifies the images and their order, wherever the files lie."""
        tars = [(tar.name, tar.bytes, tar.rows_sha256, tar.train, tar.test) for tar in self.tars]
        return hashlib.sha256(repr((self.image_shape, tars)).encode()).hexdigest()

    @property
    def source_sha256(self) -> str:
        return self.checksum

    def replaced_in(self, split: str) -> tuple[Replaced, ...]:
        return ()

    def remedy(self, root: str) -> str:
        return f"mend the files and index them again with {self.command('--overwrite')}"

    def command(self, *options: str) -> str:
        """What makes the index, for messages."""
        manifest = self.manifest
        return index_command(manifest.shards, manifest.test_shards, manifest.label_field, self.folder, *options)

    def open_split(self, root: str, split: str, part: "Part", cache: BlockCache) -> "TarImages":
        from data.tars.images import TarImages  # which needs this module

        return TarImages(self, split, part, cache)

    def order(self, root: str, images: int, seed: int | None, in_memory: bool) -> "Order":
        from data.order.order import FileOrder, Permuted, Woven  # slow to import: only where it is needed

        if seed is None:
            return FileOrder(images)
        return Permuted(images, seed) if in_memory else Woven(images, seed, self.manifest.weave)

    def draw_held_out(self, images: int, holdout: int) -> "Tensor":
        from data.order.holdout import draw_few

        return draw_few(images, holdout)


def index_arguments(shards: str, test_shards: str | None, label_field: str | None, folder: str) -> tuple[str, ...]:
    """What launch/prepare.py is given to make the index."""
    test = ("--test-shards", test_shards) if test_shards else ()
    label = ("--label", label_field) if label_field else ()
    return ("index", shards, *test, *label, "--out", folder)


def index_command(shards: str, test_shards: str | None, label_field: str | None, folder: str, *options: str) -> str:
    """The command that makes the index, for messages."""
    arguments = index_arguments(shards, test_shards, label_field, folder)
    return f"`{shlex.join(('python', 'launch/prepare.py', *arguments, *options))}`"


def read_manifest(folder: str, command: str) -> Manifest:
    """UserError if it is absent, damaged or of another version. command: what makes it, for messages."""
    path = f"{folder}/{MANIFEST_NAME}"
    try:
        with storage_of(folder).open(MANIFEST_NAME) as file:
            if file.size > _MANIFEST_BYTES:
                raise UserError(
                    f"{path} is damaged (more than {_MANIFEST_BYTES:,} bytes): make it again with {command}"
                )
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist: make it with {command}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
    if fault["loc"] == ("version",):
        raise UserError(f"{path} was written by another version of this program: make it again with {command}")
    reason = printable(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")
    raise UserError(f"{path} is damaged ({reason}): make it again with {command}")
