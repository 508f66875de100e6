"""Shards as files: plain tar files of records, written completely or not at all, and the folder they lie in."""

import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from webdataset import TarWriter

from data import records
from data.errors import UserError
from data.files import aside_of, lock, write_aside
from data.index import Member, Moments, Recipe, Record, Replaced, Shard, Sidecar, sidecar_path

log = logging.getLogger(__name__)

# The files that are written beside the index, finished or aside.
_OURS = re.compile(r"[a-z]+-\d{6}\.tar(\.json)?(\.\d+\.tmp)?|(index\.json|codec\.safetensors)\.\d+\.tmp")

Portion = tuple[str, np.ndarray, np.ndarray]  # a record: its key, the images or their codes, their labels (N,)


def write_shard(path: Path, recipe: Recipe, portions: Iterable[Portion], replaced: Sequence[Replaced] = ()) -> Shard:
    """Write one shard: aside, flushed to the disk, then renamed.

    replaced: is looked at after the portions, which may add to it.
    """
    part = "codes" if recipe.codes else "images"
    aside = aside_of(path)
    try:
        counts = _write_tar(aside, part, portions)
        with tarfile.open(aside) as tar:
            members = {member.name: Member(offset=member.offset_data, bytes=member.size) for member in tar}
        with aside.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found = (
            Record(
                key=key,
                count=count,
                crc32=members[f"{key}.crc32.npy"],
                labels=members[f"{key}.labels.npy"],
                **{part: members[f"{key}.{part}.npy"]},
            )
            for key, count in counts.items()
        )
        size = aside.stat().st_size
        shard = Shard(name=path.name, bytes=size, sha256=sha256, records=tuple(found), replaced=tuple(replaced))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return shard


def _write_tar(path: Path, part: str, portions: Iterable[Portion]) -> dict[str, int]:
    """Images of each record by its key."""
    counts = {}
    with path.open("wb") as file:
        # Fixed owner, mode and time, so that the same images give the same bytes.
        writer = TarWriter(file, encoder=False, user="biglearn", group="biglearn", mode=0o644, mtime=0)
        with writer:
            for key, content_BN, label_B in portions:
                writer.write(
                    {
                        "__key__": key,
                        "crc32.npy": records.encode(records.checksums(content_BN, label_B)),
                        f"{part}.npy": records.encode(content_BN),
                        "labels.npy": records.encode(label_B.astype("<i8")),
                    }
                )
                counts[key] = len(label_B)
        file.flush()
        os.fsync(file.fileno())
    return counts


def write_sidecar(path: Path, recipe: Recipe, shard: Shard, moments: Moments | None = None) -> None:
    """Say beside a finished shard that it is one."""
    sidecar = Sidecar(**recipe.model_dump(), shard=shard, moments=moments)
    write_aside(sidecar_path(path), sidecar.model_dump_json(exclude_none=True).encode())


def read_sidecar(path: Path, recipe: Recipe, images: int) -> Sidecar | None:
    """What stands beside a shard, if the shard is there, whole, of so many images and made by this recipe."""
    try:
        sidecar = Sidecar.model_validate_json(sidecar_path(path).read_bytes())
        size = path.stat().st_size
    except (FileNotFoundError, ValidationError):
        return None
    shard = sidecar.shard
    found = (sidecar.recipe(), shard.name, shard.bytes, shard.images)
    return sidecar if found == (recipe, path.name, size, images) else None


def remove_others(folder: Path, keep: set[str]) -> None:
    """Remove the files that are written beside an index but for those to keep."""
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in keep:
            path.unlink()


def refuse_other(folder: Path, found: Recipe, wanted: Recipe, overwrite_command: str) -> None:
    """UserError when a folder holds shards of another recipe than wanted."""
    differing = [name for name in Recipe.model_fields if getattr(found, name) != getattr(wanted, name)]
    if differing:
        plain = [name for name in differing if name not in ("source_sha256", "codes")]
        what = [f"{name} {getattr(found, name)}" for name in plain]
        what += ["codes of another PatchAE"] if "codes" in differing else []
        fault = f"{folder} holds other data ({' and '.join(what) or 'other images'})"
        raise UserError(f"{fault}: choose another --out, or replace it with {overwrite_command}")


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """One writer at a time. Raises BlockingIOError when there is another one and `wait` is not set."""
    with (folder / ".lock").open("w") as file:
        if not lock(file, wait=wait):
            log.warning("%s lies where files cannot be locked: see to it that nothing else writes there", folder)
        yield
