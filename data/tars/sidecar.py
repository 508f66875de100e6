"""Where the images of one tar file lie: found once, by its headers, and kept in a small file."""

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from safetensors.numpy import save

from data.errors import UserError, printable
from data.sources.images import MAX_FILE_BYTES
from data.storage.storage import Storage
from data.tars.headers import DamagedTarError, TarHeaders, TarMember

IMAGES = {"jpg", "jpeg", "png", "webp"}
_VERSION = "1"
_TEXT_BYTES = 2**20  # of a label or a JSON member
_HEADER_BYTES = 2**13
_KEPT_BACK = 50  # one image of so many is for testing where no files for testing are named
_NUMBERS = ("tar_bytes", "gives_parts", "train", "images", "classes", "left_out")  # of the metadata
_ROW = ("offset", "bytes", "label")


@dataclass(frozen=True)
class Rows:
    """Images that lie in one tar, in the order of the index: first byte and size, bytes, and label; each (N,) int64."""

    offset_N: np.ndarray
    bytes_N: np.ndarray
    label_N: np.ndarray


@dataclass(frozen=True)
class Found:
    """What a tar file is and holds.

    bytes, tag: its size, and what changes with its content. gives_parts: whether whoever holds it gives parts of it.
    rows: first `train` images, then those kept back for testing; each part in the order of the tar. key_N: of each.
    left_out: samples that cannot be used. first_left_out: the first of them and why, "" where there is none.
    """

    bytes: int
    tag: str
    gives_parts: bool
    train: int
    rows: Rows
    key_N: list[bytes]
    left_out: int
    first_left_out: str

    @property
    def images(self) -> int:
        return len(self.key_N)


def read_tar(storage: Storage, name: str, label_field: str | None, keeps_back: bool) -> Found:
    """The images of a tar file: of each key the member .jpg, .jpeg, .png or .webp, its label from `cls` or from JSON.

    label_field: of the JSON members; None takes `cls`, and 0 where there is none. keeps_back: whether one of 50 images,
    by the SHA-256 of their keys, is for testing. Raises OSError, DamagedTarError.
    """
    tar, samples = TarHeaders(storage, name), _Samples(label_field)
    for member in tar:
        samples.add(member, tar)
    samples.finish()
    if not samples.rows:
        why = f", as {samples.first_left_out}" if samples.first_left_out else ""
        raise DamagedTarError(f"no member of it is an image ({', '.join(sorted(IMAGES))}){why}")
    is_kept_back = {row[0]: keeps_back and _is_kept_back(row[0]) for row in samples.rows}
    rows = sorted(samples.rows, key=lambda row: is_kept_back[row[0]])
    table_N3 = np.array([row[1:] for row in rows], np.int64)
    train = len(rows) - sum(is_kept_back.values())
    keys = [row[0] for row in rows]
    left_out = (samples.left_out, samples.first_left_out)
    return Found(tar.size, tar.tag, tar.gives_parts, train, Rows(*table_N3.T), keys, *left_out)


def _is_kept_back(key: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(key).digest()[:8]) % _KEPT_BACK == 0


class _Samples:
    """Neighbouring members of one key are a sample, as in webdataset; what begins with two underscores is none."""

    def __init__(self, label_field: str | None):
        self.rows: list[tuple[bytes, int, int, int]] = []  # key, first byte, bytes, label
        self.left_out, self.first_left_out = 0, ""
        self._label_field = label_field
        self._keys: set[bytes] = set()
        self._key, self._images, self._text = None, [], {}

    def add(self, member: TarMember, tar: TarHeaders) -> None:
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        if not stem or path.name.startswith(("__", "._")):
            return
        key, suffix = os.fsencode(str(path.with_name(stem))), suffix.lower()
        if key != self._key:
            self.finish()
            self._key = key
        if suffix in IMAGES:
            self._images.append(member)
        elif suffix == ("json" if self._label_field else "cls"):
            self._text[suffix] = bytes(tar.content(member, _TEXT_BYTES))

    def finish(self) -> None:
        """The key is complete."""
        key, images, text = self._key, self._images, self._text
        self._key, self._images, self._text = None, [], {}
        if key is None:
            return
        fault, label = None, 0
        if key in self._keys:
            fault = "stands twice in the file"
        elif not images:
            fault = "has no image"
        elif len(images) > 1:
            fault = f"has {len(images)} images"
        elif not 0 < images[0].bytes <= MAX_FILE_BYTES:
            fault = f"has an image of {images[0].bytes:,} bytes"
        else:
            fault, label = self._label(text)
        self._keys.add(key)
        if fault:
            self.left_out += 1
            self.first_left_out = self.first_left_out or f"{printable(os.fsdecode(key))} {fault}"
        else:
            self.rows.append((key, images[0].offset, images[0].bytes, label))

    def _label(self, text: dict[str, bytes]) -> tuple[str | None, int]:
        """What is wrong with the label, or None, and the label."""
        if not self._label_field:
            if "cls" not in text:
                return None, 0
            digits = text["cls"].strip()
            found = int(digits) if digits.isdigit() and len(digits) < 19 else None
        else:
            try:
                fields = json.loads(text.get("json", b"{}"))
                found = fields.get(self._label_field) if isinstance(fields, dict) else None
            except (ValueError, RecursionError):
                found = None
        if type(found) is int and 0 <= found < 2**62:
            return None, found
        where = f"field {printable(self._label_field)} in its JSON" if self._label_field else "cls"
        return f"has no whole number as label ({where})", 0


def encode_sidecar(found: Found) -> bytes:
    """As a safetensors file: (N,) int64 of each of a row's numbers, and the keys, (N, width) uint8."""
    keys = np.array(found.key_N, "S")
    known = {"version": _VERSION, "tar_bytes": str(found.bytes), "tag": found.tag, "train": str(found.train)}
    known |= {"left_out": str(found.left_out), "first_left_out": found.first_left_out}
    known |= {"gives_parts": str(int(found.gives_parts))}
    known |= {"images": str(found.images), "classes": str(int(found.rows.label_N.max()) + 1)}
    table = {name: getattr(found.rows, f"{name}_N") for name in _ROW}
    table = {name: np.ascontiguousarray(column_N) for name, column_N in table.items()}
    return save({**table, "key": keys.view(np.uint8).reshape(len(keys), -1)}, known)


def summary_of(sidecar: bytes) -> dict[str, int | str]:
    """What a sidecar, or its beginning, says of its tar beside the rows. Raises ValueError for anything else."""
    known = _header(sidecar)["__metadata__"]
    if known.get("version") != _VERSION:
        raise ValueError("no index of a tar file of this version")
    try:
        numbers = {name: int(known[name]) for name in _NUMBERS}
        return {**numbers, "tag": known["tag"], "first_left_out": known["first_left_out"]}
    except KeyError as error:
        raise ValueError(f"no index of a tar file: {error} is missing") from None


def _header(content: bytes) -> dict:
    """The JSON at the beginning of a safetensors file, of which the names of tensors are places; ValueError."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(_HEADER_BYTES, len(content) - 8):
            raise ValueError("cut short")
        header = json.loads(bytes(content[8 : 8 + length]))
        if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
            raise ValueError("no metadata")
    except (struct.error, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no safetensors file ({error})") from None
    return header


def _require_inside(rows: Rows, size: int) -> None:
    """ValueError unless all images lie inside a file of so many bytes, and could be decoded."""
    end_N = rows.offset_N + rows.bytes_N
    is_inside = (rows.offset_N >= 0).all() and (end_N <= size).all()
    if not is_inside or not ((rows.bytes_N > 0) & (rows.bytes_N <= MAX_FILE_BYTES)).all() or (rows.label_N < 0).any():
        raise ValueError("rows that lie outside the file")


def rows_sha256(sidecar: bytes) -> str:
    """Of the rows and keys, which come after a header whose order may be another one each time."""
    return hashlib.sha256(memoryview(sidecar)[8 + struct.unpack_from("<Q", sidecar)[0] :]).hexdigest()


class SidecarReader:
    """Some rows of a sidecar, without the rest of it.

    images: of the tar, as the manifest says. Raises UserError when the file is absent, or another one.
    """

    def __init__(self, storage: Storage, name: str, images: int, tar_bytes: int):
        self._storage, self._name, self._tar_bytes = storage, name, tar_bytes
        try:
            head = bytes(storage.fetch(name, 0, _HEADER_BYTES).content)
            header = _header(head)
            base = 8 + struct.unpack_from("<Q", head)[0]
            self._places = {}
            for column in _ROW:
                (start, stop), of_column = header[column]["data_offsets"], header[column]
                if (of_column["dtype"], of_column["shape"], stop - start) != ("I64", [images], 8 * images):
                    raise ValueError("of another number of images")
                self._places[column] = base + start
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error.strerror}): index the shards again") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{name} is damaged ({printable(str(error))}): index the shards again") from None

    def rows(self, start: int, stop: int) -> Rows:
        """Those of the images start .. stop - 1."""
        columns = []
        for column in _ROW:
            place = self._places[column]
            try:
                content = self._storage.fetch(self._name, place + 8 * start, place + 8 * stop).content
            except OSError as error:
                raise UserError(f"{self._name} cannot be read ({error.strerror}): index the shards again") from None
            if len(content) != 8 * (stop - start):
                raise UserError(f"{self._name} is damaged (cut short): index the shards again")
            columns.append(np.frombuffer(content, "<i8"))
        rows = Rows(*columns)
        try:
            _require_inside(rows, self._tar_bytes)
        except ValueError as error:
            raise UserError(f"{self._name} is damaged ({error}): index the shards again") from None
        return rows
