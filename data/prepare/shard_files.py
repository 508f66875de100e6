"""Shards as files: plain tar files of records, written completely or not at all, and the folder they lie in."""

import errno
import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data.errors import UserError, printable
from data.files import lock
from data.read import records
from data.read.index import INDEX_NAME, Member, Moments, Recipe, Record, Replaced, Shard, Sidecar, sidecar_name
from data.storage.storage import LocalFolder, Storage, names_in

log = logging.getLogger(__name__)

# What prepare and encode write first into their index, whatever their version.
_INDEX_HEAD = re.compile(rb'\s*{\s*"version": ?\d+,\s*"source": ?"')
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.tar")
REQUESTS = 16  # of small files, at once
_ASIDE = re.compile(r"(.+)\.\d+\.tmp")

Portion = tuple[str, np.ndarray, np.ndarray]  # a record: its key, the images or their codes, their labels (N,)


def write_shard(
    folder: Storage,
    name: str,
    recipe: Recipe,
    portions: Iterable[Portion],
    replaced: Sequence[Replaced] = (),
    moments: Callable[[], Moments] | None = None,
) -> Shard:
    """Write one shard and its sidecar. The shard is filled aside, and is there when it is whole.

    The sidecar comes first, so that no shard is ever there that nothing names. replaced, moments: are looked at after
    the portions, which may add to them.
    """
    part = "codes" if recipe.codes else "images"
    with folder.writing(name) as aside:
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
        shard = Shard(name=name, bytes=size, sha256=sha256, records=tuple(found), replaced=tuple(replaced))
        folder.remove(name)  # an older one of the same size would pass for what the sidecar says
        sidecar = Sidecar(**recipe.model_dump(), shard=shard, moments=moments() if moments else None)
        folder.write(sidecar_name(name), sidecar.model_dump_json(exclude_none=True).encode())
    return shard


def _write_tar(path: Path, part: str, portions: Iterable[Portion]) -> dict[str, int]:
    """Images of each record by its key. In the tar a record is a sample of webdataset, whose package imports torch."""
    counts = {}
    with tarfile.open(path, "w") as tar:
        for key, content_BN, label_B in portions:
            arrays = {
                part: content_BN,
                "crc32": records.checksums(content_BN, label_B),
                "labels": label_B.astype("<i8"),
            }
            for name, array in sorted(arrays.items()):
                content = records.encode(array)
                member = tarfile.TarInfo(f"{key}.{name}.npy")
                # Its mode and time are fixed, too, so that the same images give the same bytes.
                member.size, member.uname, member.gname = len(content), "biglearn", "biglearn"
                tar.addfile(member, io.BytesIO(content))
            counts[key] = len(label_B)
    return counts


def read_sidecar(folder: Storage, shard: str, recipe: Recipe, images: int) -> Sidecar | None:
    """What stands beside a shard, if the shard is there, whole, of so many images and made by this recipe."""
    sidecar = _sidecar_or_none(folder, sidecar_name(shard))
    if sidecar is None or sidecar.recipe() != recipe or sidecar.shard.images != images:
        return None
    return sidecar if holds(folder, shard, sidecar.shard) else None


def names_of(shard: str) -> set[str]:
    """Of the two files that a shard is: the tar and its sidecar."""
    return {shard, sidecar_name(shard)}


def holds(folder: Storage, name: str, shard: Shard) -> bool:
    """Whether a file is, by its name and size, this shard."""
    try:
        with folder.open(name) as file:
            return (name, file.size) == (shard.name, shard.bytes)
    except FileNotFoundError:
        return False


def _content_or_none(folder: Storage, name: str) -> bytes | None:
    try:
        return bytes(folder.fetch(name, 0, None).content)
    except (FileNotFoundError, IsADirectoryError):
        return None


def _sidecar_or_none(folder: Storage, name: str) -> Sidecar | None:
    content = _content_or_none(folder, name)
    try:
        return Sidecar.model_validate_json(content) if content else None
    except ValidationError:
        return None


def claim(folder: Storage, wanted: set[str], *, codes: bool, owned: set[str] = frozenset()) -> set[str]:
    """The files of a folder that are ours: the only ones that may be removed or replaced. Call under its lock.

    Ours is what an index or a sidecar of ours names, and what the caller knows as `owned`. wanted: names that are to
    be written. codes: whether shards of codes are, or of images. Raises UserError where one of them is there and not
    ours, where shards of others lie and no index of ours, and where ours are of the other kind: nobody who encodes
    images means to lose them. What killed runs left aside of our files is removed.
    """
    there = names_in(folder)
    ours = owned | _named(folder, there, codes)
    theirs = (wanted & there) - ours
    if INDEX_NAME not in ours:
        theirs |= {name for name in there - ours if name.endswith(".tar")}
    if theirs:
        shown = printable(min(theirs)) + (f" and {len(theirs) - 1} more" if len(theirs) > 1 else "")
        raise UserError(
            f"{folder.root} holds files that no index or sidecar of ours names ({shown}): choose another --out, or move"
            " them away"
        )
    for name in there:
        if (aside := _ASIDE.fullmatch(name)) and aside[1] in wanted | ours:
            folder.remove(name)
    return ours & there


def _named(folder: Storage, there: set[str], codes: bool) -> set[str]:
    """The index, if it is ours, and the names in it and in the valid sidecars.

    Those in an index that is damaged otherwise, or of another version, count. there: all files of the folder. codes: of
    which kind they must be.
    """
    names: set[str] = set()
    kinds: set[bool] = set()
    sidecars = [name for name in there if name.endswith(".tar.json")]
    with ThreadPoolExecutor(REQUESTS) as pool:
        found = pool.map(partial(_sidecar_or_none, folder), sidecars)
    for name, sidecar in zip(sidecars, found, strict=True):
        if sidecar and sidecar_name(sidecar.shard.name) == name:
            names |= names_of(sidecar.shard.name)
            kinds.add(bool(sidecar.codes))
    content = _content_or_none(folder, INDEX_NAME)
    if content and _INDEX_HEAD.match(content):
        names.add(INDEX_NAME)
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):  # whatever is in it
            index = json.loads(content)
            kinds.add(bool(index.get("codes")))
            shards = [shard["name"] for shards in index["splits"].values() for shard in shards]
            names = names.union(*(names_of(name) for name in shards if _SHARD_NAME.fullmatch(name)))
    if kinds - {codes}:
        raise UserError(f"{folder.root} holds {'images' if codes else 'codes'}: choose another --out")
    return names


def remove(folder: Storage, names: Iterable[str]) -> None:
    """Remove files of ours: shards before what names them, so that what an interruption leaves is known as ours."""
    for name in sorted(names, key=lambda name: (name == INDEX_NAME, name.endswith(".json"), name)):
        folder.remove(name)


def refuse_other(folder: Path | str, found: Recipe, wanted: Recipe, overwrite_command: str) -> None:
    """UserError when a folder holds shards of another recipe than wanted."""
    differing = [name for name in Recipe.model_fields if getattr(found, name) != getattr(wanted, name)]
    if differing:
        plain = [name for name in differing if name not in ("source_sha256", "codes")]
        what = [f"{name} {getattr(found, name)}" for name in plain]
        if "codes" in differing:
            codes = [recipe.codes and recipe.codes.model_copy(update={"mirrored": True}) for recipe in (found, wanted)]
            what += ["no codes of mirrored images" if codes[0] == codes[1] else "codes of another PatchAE"]
        fault = f"{folder} holds other data ({' and '.join(what) or 'other images'})"
        raise UserError(f"{fault}: choose another --out, or replace it with {overwrite_command}")


@contextmanager
def locked(folder: Storage, *, wait: bool) -> Iterator[None]:
    """One writer at a time. Raises BlockingIOError when there is another one and `wait` is not set.

    A folder that nobody here can write needs no lock: what is whole can still be looked at. Object stores have none.
    """
    if not isinstance(folder, LocalFolder):
        yield
        return
    path = Path(folder.root) / ".lock"
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a"))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            file = stack.enter_context(path.open()) if os.access(path, os.R_OK) else None
        if file and not lock(file, wait=wait):
            log.warning("%s lies where files cannot be locked: see to it that nothing else writes there", folder.root)
        yield
