"""Which files lie in a person's folder: one rule for every command."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError

# What systems and programs put beside the files of a person; what begins with a dot is hidden as well.
_NOT_THEIRS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db"}

# The names of files that have to be unpacked to be read.
ARCHIVE = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|lz4))?|tgz|tbz2?|txz|zip|7z|rar)$", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """names: of the files, relative to the folder, sorted. circles: links to folders that lead back or twice to one.

    broken: those of the names that are links to what is not there, or cannot be reached.
    """

    names: tuple[str, ...]
    circles: tuple[str, ...]
    broken: tuple[str, ...]


def find_files(folder: Path) -> Found:
    """The files in a folder and below it, but for hidden ones and what systems put there.

    Links to folders are followed, each real folder once: one that lies there itself is read under its own name, and a
    link to it, or to a folder that holds this one, is a circle. UserError when a folder cannot be read.
    """
    names: list[str] = []
    circles: list[str] = []
    broken: list[str] = []
    try:
        root = folder.resolve(strict=True)
        known = {_identity(place) for place in root.parents}
        pending, linked = [""], []
        while pending or linked:
            below = pending.pop() if pending else linked.pop()  # what lies there itself comes first
            if (identity := _identity(folder / below)) in known:
                circles.append(below.rstrip("/"))
                continue
            known.add(identity)
            for entry in _entries(folder / below):
                name = below + entry.name
                if _is_folder(entry):
                    (linked if entry.is_symlink() else pending).append(f"{name}/")
                    continue
                names.append(name)
                if entry.is_symlink() and not os.path.exists(entry):
                    broken.append(name)
            linked.sort(reverse=True)  # the first name first, whatever the order on the disk
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    return Found(tuple(sorted(names)), tuple(sorted(circles)), tuple(sorted(broken)))


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name not in _NOT_THEIRS:
                yield entry


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that is shut
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
