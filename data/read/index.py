"""The index of a folder of shards: what is in it, and where every record lies. Read, never trusted."""

import errno
import hashlib
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data.errors import UserError, printable
from data.order.weave import Weave
from data.sources import SOURCES
from data.sources.walk import ARCHIVE
from data.storage.addresses import TARS
from data.storage.cache import BlockCache
from data.storage.storage import STORAGES, StoredFile, is_local, scheme_of, storage_of

if TYPE_CHECKING:
    from torch import Tensor

    from data.order.order import Order
    from data.order.parts import Part
    from data.read.sound import SoundImages

INDEX_NAME = "index.json"
HEADER_BYTES = 4096  # no .npy header of ours is longer
_VERSION = 2
_INDEX_BYTES = 2**30  # some 100 million images
_INTEGER = 2**62

Count = Annotated[int, Field(gt=0, le=_INTEGER)]
Place = Annotated[int, Field(ge=0, le=_INTEGER)]
# No dots, because webdataset ends the key of a record at the first one.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)  # a large set has a million: less than half of a model's memory
class Member:
    """One .npy file inside a tar: its first byte and its size, in bytes."""

    __pydantic_config__ = _STRICT

    offset: Place
    bytes: Count


@dataclass(frozen=True, slots=True)
class Record:
    """`count` consecutive images: the members <key>.crc32.npy, <key>.images.npy or .codes.npy, and <key>.labels.npy."""

    __pydantic_config__ = _STRICT

    key: Name
    count: Count
    crc32: Member
    images: Member | None = field(default=None, kw_only=True)
    codes: Member | None = field(default=None, kw_only=True)
    labels: Member

    @property
    def content(self) -> Member:
        """The images, or the codes of images."""
        return self.images or self.codes

    @property
    def members(self) -> dict[str, Member]:
        """By their names in the tar, in its order."""
        parts = ("crc32", "images", "labels") if self.images else ("codes", "crc32", "labels")
        return {f"{self.key}.{part}.npy": getattr(self, part) for part in parts}

    def __post_init__(self):
        if (self.images is None) == (self.codes is None):
            raise ValueError(f"record {self.key} must have either images or codes")


class Replaced(_Model):
    """An image that was damaged when the shards were written. Its place holds another image of the shard.

    name: its file, as the source names it. reason: why it could not be used. index: its place in the split.
    stand_in: the place in the split of the image, and label, that were written there instead.
    """

    name: str
    reason: str
    index: Place
    stand_in: Place


class Shard(_Model):
    """One tar file: its name in the folder, its size and checksum, its records in file order, its replaced images."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*\.tar$")]
    bytes: Count
    sha256: Sha256
    records: Annotated[tuple[Record, ...], Field(min_length=1)]
    replaced: tuple[Replaced, ...] = ()

    @property
    def images(self) -> int:
        return sum(record.count for record in self.records)

    @model_validator(mode="after")
    def _inside(self) -> "Shard":
        end = 0
        for record in self.records:
            for member in record.members.values():
                if member.offset < end:  # bytes that count twice could promise more images than fit into memory
                    raise ValueError(f"record {record.key} of {self.name} overlaps with what is before it")
                end = member.offset + member.bytes
                if end > self.bytes:
                    raise ValueError(f"record {record.key} of {self.name} lies outside the file")
        return self


class Codes(_Model):
    """What an image has become: one PatchAE code a patch, float16.

    patch_autoencoder_sha256: of the weights that made them. patches: L. code_dim: values of a code. mirrored: whether
    behind the codes of each image those of the image mirrored left to right lie.
    """

    patch_autoencoder_sha256: Sha256
    patches: Count
    code_dim: Count
    mirrored: bool = False


class Recipe(_Model):
    """What decides every byte of a folder of shards: two folders of equal recipes are equal.

    codes: None for shards of the images themselves.
    """

    version: Literal[2] = _VERSION
    source: Name
    source_sha256: Sha256  # of the images and labels before they are resized
    image_shape: tuple[Count, Count, Literal[1, 3]]  # H, W, C
    classes: Count
    record_images: Count  # images of a full record
    shard_records: Count  # records of a full shard
    codes: Codes | None = None

    @property
    def content_dtype(self) -> np.dtype:
        return np.dtype("<f2" if self.codes else "u1")

    @property
    def content_shape(self) -> tuple[int, ...]:
        """What a shard has of one image: (H, W, C), or for codes (L, D), with those of the mirrored image (2, L, D)."""
        if not self.codes:
            return self.image_shape
        of_image = (self.codes.patches, self.codes.code_dim)
        return (2, *of_image) if self.codes.mirrored else of_image

    @property
    def content_bytes(self) -> int:
        """Bytes that a shard has of one image."""
        return math.prod(self.content_shape) * self.content_dtype.itemsize

    def remedy(self, root: Path | str) -> str:
        """What makes a damaged folder of this recipe whole, for messages."""
        command = encode_command if self.codes else partial(prepare_command, self.source)
        options = ["--flip"] if self.codes and self.codes.mirrored else []
        return f"write the shards again with {command(root, *options, '--overwrite')}"

    def recipe(self) -> "Recipe":
        """The fields of the recipe alone."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})


class Moments(_Model):
    """Count, mean and summed squared deviation from the mean, per dimension of a code, over many codes."""

    count: Count
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class Sidecar(Recipe):
    """Written beside each finished shard, so that an interrupted run can go on. moments: of the codes in the shard."""

    shard: Shard
    moments: Moments | None = None


class Index(Recipe):
    """The whole folder: for each split its shards, in the order of the data set."""

    splits: Annotated[dict[Name, Annotated[tuple[Shard, ...], Field(min_length=1)]], Field(min_length=1)]

    @property
    def images(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(shard.images for shard in shards) for split, shards in self.splits.items()}

    @property
    def shards(self) -> list[Shard]:
        return [shard for shards in self.splits.values() for shard in shards]

    @property
    def replaced(self) -> list[Replaced]:
        """The images that were damaged when the shards were written."""
        return [image for shard in self.shards for image in shard.replaced]

    def replaced_in(self, split: str) -> tuple[Replaced, ...]:
        return tuple(image for shard in self.splits[split] for image in shard.replaced)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def open_split(self, root: Path | str, split: str, part: "Part", cache: BlockCache) -> "SoundImages":
        """The images of a part of a split, for reading. cache: for what lies elsewhere."""
        from data.read.split_images import SplitImages  # which needs this module

        return SplitImages(self, root, split, part, cache)

    def order(self, root: Path | str, images: int, seed: int | None, in_memory: bool) -> "Order":
        """In which so many images come: what is read from elsewhere comes in blocks of neighbours."""
        from data.order.order import FileOrder, Permuted, Woven  # slow to import: only where it is needed

        if seed is None:
            return FileOrder(images)
        return Permuted(images, seed) if in_memory or is_local(root) else Woven(images, seed, Weave())

    def draw_held_out(self, images: int, holdout: int) -> "Tensor":
        """The indices of the images that are held out of so many."""
        from data.order.holdout import draw_any

        return draw_any(images, holdout)

    @property
    def checksum(self) -> str:
        """Identifies the images and their order, whatever the layout of the shards; codes count as their images."""
        if self.source == TARS:  # codes of tar files, whose checksum stands there and covers shape and order
            return self.source_sha256
        content = (self.source_sha256, self.image_shape, sorted(self.images.items()))
        return hashlib.sha256(repr(content).encode()).hexdigest()

    @model_validator(mode="after")
    def _consistent(self) -> "Index":
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise ValueError("a shard is named twice")
        for record in (record for shard in self.shards for record in shard.records):
            if bool(record.codes) != bool(self.codes):
                raise ValueError(f"record {record.key} is not of the kind that the index says")
            for member, payload in (
                (record.crc32, record.count * 4),
                (record.content, record.count * self.content_bytes),
                (record.labels, record.count * 8),
            ):
                if not payload < member.bytes <= payload + HEADER_BYTES:
                    raise ValueError(f"record {record.key}: {member.bytes} bytes for {record.count} images")
        return self


def prepare_command(source: str, root: Path | str, *options: str) -> str:
    """The command that makes the folder, for messages."""
    from_folder = ("--source", "DIR") if source in SOURCES and SOURCES[source].image_files else ()
    return f"`{shlex.join(('python', 'launch/prepare.py', source, *from_folder, '--out', str(root), *options))}`"


def encode_command(
    out: Path | str, *options: str, images: Iterable[str] = ("--images", "DIR"), patch_autoencoder="RUN"
) -> str:
    """The command that makes a folder of latent shards, for messages. images: the options that name them."""
    from_what = (*images, "--patch-autoencoder", str(patch_autoencoder))
    return f"`{shlex.join(('python', 'launch/encode.py', *from_what, '--out', str(out), *options))}`"


def sidecar_name(shard: str) -> str:
    return f"{shard}.json"


def require_folder_path(folder: Path | str, *, kind: Literal["any", "local", "writable"] = "any") -> None:
    """UserError if this can be no folder.

    That is an address that cannot be read, or, by its kind, one of no folder of this machine ("local") or of what takes
    no files ("writable"); an archive or a pattern of archives, if no folder is called so; any other file.
    """
    shown, path = printable(str(folder)), Path(folder)
    scheme = scheme_of(folder)
    if kind == "writable" and scheme not in (None, "file", "s3", "gs"):
        raise UserError(f"nothing can be written to {shown}: give a folder, or an address of s3:// or gs://")
    if kind != "local" and scheme in STORAGES:
        return
    if scheme:
        what = "shards are read from a folder" if kind == "any" else "this works in folders of the machine"
        raise UserError(f"{what}; {shown} is none: copy what it holds to a disk, or mount it, and give the path")
    is_archive = ARCHIVE.search(path.name)
    if os.path.isdir(path) or not (is_archive or os.path.isfile(path)):
        return
    what, remedy = "a file", "give the folder that holds it, or another one"
    if is_archive:
        what = "a pattern of archives" if re.search(r"[{*?\[]|::", str(path)) else "an archive"
        remedy = (
            f"of prepared shards give the folder that holds {INDEX_NAME}; unpack other archives, and give that folder"
        )
    if os.path.isfile(path.parent / INDEX_NAME):
        remedy = f"give the one with {INDEX_NAME}, {printable(str(path.parent))}"
    raise UserError(f"{shown} is {what}, not a folder: {remedy}")


def read_index(root: Path | str, command: Callable[..., str] | None = None) -> Index:
    """The index alone, without a look at the shards. UserError if it is absent, damaged or of another version.

    command(*options): what writes the folder, for the remedy in a message; None guesses.
    """
    require_folder_path(root)
    path, storage = f"{root}/{INDEX_NAME}", storage_of(root)
    if command is None:
        name = Path(root).name
        command = partial(prepare_command, name if name in SOURCES else "mnist", root)
    again = f"write the shards again with {command('--overwrite')}"
    try:
        with storage.open(INDEX_NAME) as file:
            size, text = file.size, file.read() if file.size <= _INDEX_BYTES else b""
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist: write the shards with {command()}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if size > _INDEX_BYTES:
        raise UserError(f"{path} is damaged (more than {_INDEX_BYTES:,} bytes): {again}")
    try:
        return Index.model_validate_json(text)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    for fault in faults:
        if fault["loc"] == ("version",) and fault["type"] == "literal_error":
            raise UserError(f"{path} was written by another version of this program: {again}")
    where = ".".join(map(str, faults[0]["loc"]))
    reason = printable(f"{where}: {faults[0]['msg']}" if where else faults[0]["msg"])
    raise UserError(f"{path} is damaged ({reason}): {again}")


def open_shard(root: Path | str, index: Index, shard: Shard) -> StoredFile:
    """The shard, opened for reading. UserError if it is absent or of another size than the index says."""
    path = f"{root}/{shard.name}"
    try:
        file = storage_of(root).open(shard.name)
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}: ask its owner to let you read it (chmod a+rX)") from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            more = f"`ulimit -n {2 * len(index.shards) + 256}`"  # held-out images have their split opened twice
            raise UserError(f"{path}: {error.strerror}: allow more of them with {more}") from None
        reason = error.strerror
    else:
        if file.size == shard.bytes:
            return file
        file.close()
        reason = f"has {file.size} bytes, the index says {shard.bytes}"
    raise UserError(f"{path}: {reason}; {index.remedy(root)}")


def load_index(root: Path | str, source: str | None = None, command: Callable[..., str] | None = None) -> Index:
    """The index of a folder whose shards are all there and of the right size.

    source: the data set that it must hold; None takes any. command: as in `read_index`. Raises UserError, one line
    with cause and remedy. What the shards contain is checked by `data.prepare.verify` and, record by record, when they
    are read.
    """
    index = read_index(root, command or (partial(prepare_command, source, root) if source else None))
    if source not in (None, index.source):
        raise UserError(f"{root} holds {index.source}, not {source}: give the folder of {source} as data.shards")
    with ThreadPoolExecutor(1 if is_local(root) else 16) as pool:
        list(pool.map(lambda shard: open_shard(root, index, shard).close(), index.shards))
    return index
