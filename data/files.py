"""Files that are complete or absent, and locks that end with their process."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def aside_of(path: Path) -> Path:
    """Where this process writes a file before it is renamed."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def write_aside(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, then rename: a reader sees the old content or the new, never a part."""
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


def cache_folder() -> Path:
    """Where this program keeps what it can fetch again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "biglearn-vae"


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there. OSError that says what is in its place."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        place = next(place for place in (path, *path.parents) if os.path.lexists(place))
        what = f"a link to {os.readlink(place)}, which is not there" if place.is_symlink() else "not a folder"
        raise NotADirectoryError(error.errno, what, str(place)) from None


@contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """A name of this file for libraries that open none whose bytes are not UTF-8, as safetensors."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: IO, *, wait: bool) -> bool:
    """Take the lock of an open file; the kernel drops it when the process ends, however it ends.

    False when the file system has no locks. Raises BlockingIOError when another process has it and `wait` is not set.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
        return False
    return True
