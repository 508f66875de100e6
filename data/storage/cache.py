"""Parts of files from elsewhere, kept on the disk of a node for all its processes."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data.errors import UserError
from data.files import make_folder, write_aside

_LOCKS = 256
_LOOK_SHARE = 100  # of the most bytes, that a process writes between two looks at what the folder holds


class BlockCache:
    """A folder of at most so many bytes, and never more than half of what is free: the least recently used goes.

    Processes of the node may share it: what several want at once is fetched once. A file is whole or absent, also
    after a kill. most_bytes: 0 keeps nothing, and every part is fetched.
    """

    def __init__(self, folder: Path, most_bytes: int):
        self._folder, self._most_bytes = folder, most_bytes
        self._until_look = 0  # bytes
        self._is_made = False

    def get(self, key: str, fetch: Callable[[], memoryview], start: int = 0, stop: int | None = None) -> memoryview:
        """The bytes start .. stop - 1 of what `fetch` gives, from the disk if it was fetched before under this key.

        Raises UserError if the folder cannot be made, and what `fetch` raises.
        """
        if not self._most_bytes:
            return fetch()[start:stop]
        self._make()
        path = self._path(key)
        if (kept := _read(path, start, stop)) is not None:
            return kept
        with self._alone(path.name):
            if (kept := _read(path, start, stop)) is not None:  # another process was faster
                return kept
            content = fetch()
            self._keep(path, content)
        return content[start:stop]

    def kept(self, key: str, start: int = 0, stop: int | None = None) -> memoryview | None:
        """The bytes start .. stop - 1 of what is kept under a key; None where it is not, or no more."""
        return _read(self._path(key), start, stop) if self._most_bytes else None

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name

    def _make(self) -> None:
        """The folder, when something is to be kept."""
        if self._is_made:
            return
        try:
            make_folder(self._folder / "locks")
        except OSError as error:
            raise UserError(
                f"{self._folder} cannot be made ({error.strerror}): name another folder as data.cache, or set"
                " data.cache_bytes=0"
            ) from None
        self._is_made = True

    def _keep(self, path: Path, content: memoryview) -> None:
        """A disk that is full, or fails, keeps nothing."""
        try:
            if self._until_look <= 0:
                self._make_room()
                self._until_look = self._most_bytes // _LOOK_SHARE
            self._until_look -= len(content)
            path.parent.mkdir(exist_ok=True)
            write_aside(path, content)
        except OSError:
            self._until_look = 0

    def _make_room(self) -> None:
        """Remove what was not used for longest, down to nine tenths of what is allowed."""
        found = []
        for path in self._folder.glob("[0-9a-f][0-9a-f]/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process looks, too
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        held = sum(size for _, size, _ in found)
        most = min(self._most_bytes, (shutil.disk_usage(self._folder).free + held) // 2)
        for _, size, path in sorted(found) if held > most else ():
            path.unlink(missing_ok=True)
            held -= size
            if held <= 0.9 * most:
                break

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One thread of one process of the node at a time fetches what has this name, or one of a few others."""
        with ExitStack() as stack:
            with suppress(OSError):  # no locks, or somebody has removed the folder: it may be fetched twice
                file = stack.enter_context((self._folder / "locks" / str(int(name[:8], 16) % _LOCKS)).open("a"))
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read(path: Path, start: int, stop: int | None) -> memoryview | None:
    """Some bytes of a file; None if it is not there."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            content = file.read() if stop is None else file.read(stop - start)
        os.utime(path)  # it was used
    except OSError:
        return None
    return memoryview(content)
