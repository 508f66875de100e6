"""Where shards lie. Another kind of place is a new file with its `Storage`, and a line in `STORAGES`."""

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from data.errors import UserError, printable
from data.files import aside_of, make_folder, sync_directory, write_aside


class StoredFile(Protocol):
    """A file of bytes that was opened for reading, with what `BinaryIO` has to read from any place of it."""

    size: int

    def read_into(self, content: memoryview, offset: int) -> int:
        """Fill `content` with the bytes from `offset` on, from any thread; how many there were. Raises OSError."""

    def read(self, count: int = -1) -> bytes: ...

    def readinto(self, content: memoryview) -> int: ...

    def seek(self, offset: int, whence: int = 0) -> int: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_) -> None: ...


class Fetched(NamedTuple):
    """Bytes of a file, with the size of the whole of it and a tag that changes when its content does."""

    content: memoryview
    size: int
    tag: str


class NoRangesError(OSError):
    """Whoever holds the file gives the whole of it, or nothing."""


class Storage(Protocol):
    """A folder of files. What fails is an OSError that says why.

    root: its path or address.
    """

    root: Path | str

    def make(self) -> None:
        """See to it that the folder is there, where there is such a thing."""

    def fetch(self, name: str, start: int, stop: int | None) -> Fetched:
        """The bytes start .. stop - 1 of a file, from any thread: fewer at its end; None: all from there on.

        Raises NoRangesError where it can only be had from 0 to None.
        """

    def expect(self, name: str, start: int, stop: int) -> None:
        """These bytes will be fetched soon."""

    def open(self, name: str) -> StoredFile:
        """A file, for reading."""

    def names(self) -> list[str]:
        """All files there are."""

    def write(self, name: str, content: bytes) -> None:
        """A whole file, which nobody ever sees half written."""

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine to be filled; it takes this name, whole, when the block has ended without an error."""

    def remove(self, name: str) -> None:
        """A file, if it is there."""


class _LocalFile(io.BufferedReader):
    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read_into(self, content: memoryview, offset: int) -> int:
        """At a place of its own: threads share the file."""
        return os.preadv(self.fileno(), [content], offset)


class LocalFolder:
    """A folder of this machine, or one that is mounted on it."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    def fetch(self, name: str, start: int, stop: int | None) -> Fetched:
        file = os.open(os.path.join(self.root, name), os.O_RDONLY)  # Path.open takes twice as long
        try:
            status = os.fstat(file)
            content = bytearray(max(0, min(status.st_size, status.st_size if stop is None else stop) - start))
            count = os.preadv(file, [content], start) if content else 0
        finally:
            os.close(file)
        return Fetched(memoryview(content)[:count], status.st_size, str(status.st_mtime_ns))

    def expect(self, name: str, start: int, stop: int) -> None:
        """The system reads them meanwhile, into its own memory."""
        with (self.root / name).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def make(self) -> None:
        make_folder(self.root)

    def open(self, name: str) -> _LocalFile:
        return _LocalFile(self.root / name)

    def names(self) -> list[str]:
        return os.listdir(self.root)

    def write(self, name: str, content: bytes) -> None:
        write_aside(self.root / name, content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        path = self.root / name
        aside = aside_of(path)
        try:
            yield aside
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
            sync_directory(self.root)
        finally:
            aside.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


def _file_address(root: Path | str) -> LocalFolder:
    return LocalFolder(str(root).partition("://")[2])


def _objects(root: Path | str) -> Storage:
    from data.storage.objects import ObjectFolder  # slow to import: only where it is needed

    return ObjectFolder(root)


# By what stands before ://.
STORAGES: dict[str, Callable[[Path | str], Storage]] = {
    "file": _file_address,
    **dict.fromkeys(("s3", "gs", "http", "https"), _objects),
}


def scheme_of(root: Path | str) -> str | None:
    """What stands before :// in the address of a folder; None for a path."""
    found = re.match(r"(pipe):|([a-z][a-z0-9+.-]*)://", str(root), re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else None


def storage_of(root: Path | str) -> Storage:
    """The folder of this address."""
    return STORAGES.get(scheme_of(root), LocalFolder)(root)


def names_in(storage: Storage) -> set[str]:
    """All files there are; none where there is no folder, as there are no empty ones in object stores."""
    try:
        return set(storage.names())
    except FileNotFoundError:
        return set()


def is_local(root: Path | str) -> bool:
    """Whether it is a folder of this machine, or one that is mounted on it."""
    return scheme_of(root) in (None, "file")


def out_of_reach(address: str, why: str) -> UserError:
    """For what a run needs and cannot read now, though nothing says that it is damaged."""
    return UserError(f"{printable(address)} cannot be read ({why}): when it can, --resume auto goes on")


def is_there(root: Path | str, name: str | None = None) -> bool:
    """Whether anything lies at this address, or a file of this name. UserError where a server does not say."""
    try:
        storage = storage_of(root)
        storage.open(name).close() if name else storage.names()
    except FileNotFoundError:
        return False
    except OSError as error:  # here: a file where a folder is meant, or one that may not be looked into
        if not is_local(root):
            raise UserError(f"{printable(str(root))} cannot be read ({error.strerror})") from None
    return True
