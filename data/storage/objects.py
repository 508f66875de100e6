"""Folders of object stores and web servers: s3://, gs://, http:// and https://, through obstore.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ...): an address that
holds any is refused, and no message repeats what a server was told.
"""

import errno
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path

import obstore
from obstore.exceptions import NotSupportedError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from data.storage.storage import Fetched, NoRangesError

# Failures of the server and of the connection are retried, at growing intervals; then a run ends, and can go on.
RETRY = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
_CLIENT = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "10min"}
_BUFFER_BYTES = 2**16
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true where anybody may read",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true where anybody may read",
}


@cache  # a store keeps its connections
def _store(root: str) -> ObjectStore:
    # What the options hold, obstore does not look for in the environment.
    allowed = root.startswith("http://") or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    return from_url(root, client_options={**_CLIENT, "allow_http": allowed}, retry_config=RETRY)


class ObjectFolder:
    """What lies under an address. Errors are OSErrors that say in a few words what the server answered."""

    def __init__(self, root: Path | str):
        self.root = str(root)
        try:
            self._store = _store(self.root)
        except Exception:  # obstore's errors on addresses are of several kinds
            raise OSError(errno.EINVAL, "no address of a folder", self.root) from None

    def expect(self, name: str, start: int, stop: int) -> None:
        """Nothing on this machine would keep them."""

    def make(self) -> None:
        """Object stores have no empty folders."""

    def fetch(self, name: str, start: int, stop: int | None) -> Fetched:
        options = {"range": {"offset": start} if stop is None else (start, stop)} if (start, stop) != (0, None) else {}
        try:
            found = obstore.get(self._store, name, options=options)
            return Fetched(memoryview(found.bytes()), found.meta["size"], _tag(found.meta))
        except Exception as error:
            raise self._error(error) from None

    def open(self, name: str) -> "_ObjectFile":
        try:
            return _ObjectFile(self, name, obstore.head(self._store, name)["size"])
        except Exception as error:
            raise self._error(error) from None

    def names(self) -> list[str]:
        try:
            found = obstore.list_with_delimiter(self._store)["objects"]
        except Exception as error:
            raise self._error(error) from None
        if not found:
            raise FileNotFoundError(errno.ENOENT, "nothing lies there", self.root)
        return [each["path"].rpartition("/")[2] for each in found]

    def write(self, name: str, content: bytes) -> None:
        self._put(name, content)

    def _put(self, name: str, content: bytes | Path) -> None:
        try:
            obstore.put(self._store, name, content)
        except Exception as error:
            raise self._error(error) from None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            try:
                yield path
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    error.strerror = f"no space left in {tempfile.gettempdir()}, where it is filled, or as TMPDIR says"
                raise
            self._put(name, path)

    def remove(self, name: str) -> None:
        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> OSError:
        """In a few words; a server's own text may hold what it was told."""
        scheme, text = self.root.partition("://")[0].lower(), str(error)
        answer = re.search(r"status code: (\d{3}[A-Za-z ]*)", text)
        if isinstance(error, FileNotFoundError):
            what = "no such bucket" if "NoSuchBucket" in text else "no such object"
            return FileNotFoundError(errno.ENOENT, what, self.root)
        if isinstance(error, NotSupportedError):
            return NoRangesError(errno.EOPNOTSUPP, "the server gives no parts of a file", self.root)
        if "169.254.169.254" in text or "metadata.google" in text:
            return PermissionError(errno.EACCES, f"no credentials: set {_CREDENTIALS[scheme]}", self.root)
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            shown = f"the server refuses it ({answer[1].strip()})" if answer else "the server refuses it"
            remedy = f": see {_CREDENTIALS[scheme]}" if scheme in _CREDENTIALS else ""
            return PermissionError(errno.EACCES, shown + remedy, self.root)
        if answer:
            return OSError(errno.EIO, f"the server answers {answer[1].strip()}", self.root)
        if "sending request" in text or "onnect" in text:
            return OSError(errno.EIO, "the server cannot be reached", self.root)
        return OSError(errno.EIO, "the answer of the server broke off", self.root)


def _tag(meta: dict) -> str:
    """What changes with the content of an object."""
    return meta["e_tag"] or meta["last_modified"].isoformat()


class _ObjectFile(io.BufferedReader):
    def __init__(self, folder: ObjectFolder, name: str, size: int):
        super().__init__(_RawObject(folder, name, size), _BUFFER_BYTES)
        self.size = size

    def read_into(self, content: memoryview, offset: int) -> int:
        return self.raw.read_at(content, offset)


class _RawObject(io.RawIOBase):
    def __init__(self, folder: ObjectFolder, name: str, size: int):
        self._folder, self._name, self._size, self._place = folder, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, content) -> int:
        count = self.read_at(memoryview(content).cast("B"), self._place)
        self._place += count
        return count

    def readall(self) -> bytes:
        """In one request, not by the buffer."""
        content = bytes(self._folder.fetch(self._name, self._place, self._size).content) if self._size else b""
        self._place += len(content)
        return content

    def read_at(self, content: memoryview, offset: int) -> int:
        stop = min(offset + len(content), self._size)
        if stop <= offset:
            return 0
        found = self._folder.fetch(self._name, offset, stop).content
        content[: len(found)] = found
        return len(found)
