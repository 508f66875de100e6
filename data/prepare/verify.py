"""Check a folder of shards to the last byte."""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from data.errors import UserError, printable
from data.read import records
from data.read.index import Index, Member, Shard, Sidecar, open_shard, read_index, sidecar_name
from data.storage.storage import StoredFile, storage_of


def verify(root: Path | str, progress: bool = False) -> list[str]:
    """All faults of a folder, one line each that names the file; empty when it is whole.

    Every shard is read: its size and SHA-256, its members as tar finds them, each record's arrays and labels.
    """
    try:
        index = read_index(root)
    except UserError as error:
        return [str(error)]
    faults = []
    shown = None if progress else True  # None: on a terminal
    for shard in tqdm(index.shards, desc=f"verify {root}", unit=" shards", disable=shown):
        faults += _shard_faults(root, index, shard)
        faults += _sidecar_faults(root, index, shard)
    tars = {name for name in storage_of(root).names() if name.endswith(".tar")}
    unlisted = tars - {shard.name for shard in index.shards}
    return faults + [f"{root}/{name}: is not in the index" for name in sorted(unlisted)]


def _shard_faults(root: Path | str, index: Index, shard: Shard) -> Iterator[str]:
    path = f"{root}/{shard.name}"
    try:
        file = open_shard(root, index, shard)
    except UserError as error:
        yield str(error)
        return
    with file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            yield f"{path}: its SHA-256 is {found}, the index says {shard.sha256}"
        yield from _member_faults(path, file, shard)
        for record in shard.records:
            try:
                content_BN, label_B = records.read_content(file, record, index), records.read_labels(file, record)
                crc32_B = records.read_checksums(file, record)
            except ValueError as error:
                yield f"{path}: record {record.key}: {error}"
            else:
                damaged = np.flatnonzero(records.checksums(content_BN, label_B) != crc32_B).tolist()
                if damaged:
                    yield f"{path}: record {record.key}: damaged images: {len(damaged)}, first at place {damaged[0]}"
                if index.codes and not np.isfinite(content_BN).all():
                    yield f"{path}: record {record.key}: codes are not all finite"
                if not 0 <= label_B.min() <= label_B.max() < index.classes:
                    yield f"{path}: record {record.key}: labels are not all in 0 .. {index.classes - 1}"


def _member_faults(path: str, file: StoredFile, shard: Shard) -> Iterator[str]:
    """Whether any tar reader finds the members that the index lists, and no others."""
    found: dict[str, Member] = {}
    try:
        for header in _headers(file):
            if header.name in found:
                raise ValueError(f"member {header.name} is there twice")
            found[header.name] = Member(offset=file.tell(), bytes=header.size)
    except (tarfile.TarError, ValueError) as error:
        yield f"{path}: cannot be read as tar ({printable(str(error))})"
        return
    listed = {name: member for record in shard.records for name, member in record.members.items()}
    for name in sorted(found.keys() | listed.keys()):
        if found.get(name) != listed.get(name):
            yield f"{path}: member {printable(name)} is not as the index says"


def _headers(file: StoredFile) -> Iterator[tarfile.TarInfo]:
    """The header of each member, the file placed at its first byte.

    Header by header, because `tarfile` follows whatever extension a header asks for. Raises ValueError for a member
    that is no plain file, whose name holds a path, or that is empty or larger than the file.
    """
    start, end = 0, file.size
    while start < end:
        file.seek(start)
        block = file.read(tarfile.BLOCKSIZE)
        if block == bytes(tarfile.BLOCKSIZE):
            return  # what follows the members is filled with zeros
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.type != tarfile.REGTYPE:
            raise ValueError(f"member {header.name} is no plain file")
        if "/" in header.name or header.name in ("", ".", ".."):
            raise ValueError(f"the name of member {header.name} holds a path")
        if not 0 < header.size <= end - file.tell():
            raise ValueError(f"member {header.name} has {header.size} bytes")
        start = file.tell() + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        yield header


def _sidecar_faults(root: Path | str, index: Index, shard: Shard) -> Iterator[str]:
    """A sidecar may be absent (only `prepare` needs it), but not say other things than the index."""
    name = sidecar_name(shard.name)
    path = f"{root}/{name}"
    try:
        with storage_of(root).open(name) as file:
            sidecar = Sidecar.model_validate_json(file.read())
    except FileNotFoundError:
        return
    except (OSError, ValidationError):
        sidecar = None
    if sidecar is None or (sidecar.recipe(), sidecar.shard) != (index.recipe(), shard):
        yield f"{path}: does not agree with the index"
