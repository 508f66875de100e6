"""The members of a tar file, found by its headers alone. The file is untrusted."""

from collections.abc import Iterator
from dataclasses import dataclass

from data.errors import printable
from data.sources.images import in_place
from data.storage.storage import NoRangesError, Storage

_BLOCK = 512
_WINDOW_BYTES = 2**20  # of one read; larger members are stepped over
_NAME_BYTES = 2**16  # of a long name
_PLAIN, _LONG_NAME, _PAX, _PAX_ALL = (b"0", b"\0", b"7"), b"L", b"x", b"g"


class DamagedTarError(Exception):
    """This is no tar file that can be read: the reason in one line."""


@dataclass(frozen=True)
class TarMember:
    """A plain file in a tar: its first byte and its size, bytes."""

    name: str
    offset: int
    bytes: int


class TarHeaders:
    """The plain files of a tar, in its order; OSError when it cannot be read, DamagedTarError when it is none.

    size, tag: of the file, as `Storage.fetch` has them, after the first member. gives_parts: whether it could be read
    in parts.
    """

    def __init__(self, storage: Storage, name: str):
        self.size, self.tag, self.gives_parts = 0, "", True
        self._storage, self._name = storage, name
        self._window, self._start = memoryview(b""), 0

    def __iter__(self) -> Iterator[TarMember]:
        offset, long_name = 0, None
        while True:
            header = bytes(self._read(offset, _BLOCK))
            if not header.strip(b"\0"):  # the end, or a file that was cut between two members
                if offset == 0:
                    raise DamagedTarError("an empty file" if not self.size else "no tar file, but zeros")
                return
            name, size, kind = _parse(header, offset)
            offset += _BLOCK
            if offset + size > self.size:
                raise DamagedTarError(f"cut short: {printable(name)} ends at byte {offset + size:,} of {self.size:,}")
            if kind in (_LONG_NAME, _PAX):
                if size > _NAME_BYTES:
                    raise DamagedTarError(f"the name of a member has {size:,} bytes")
                content = bytes(self._read(offset, size))
                long_name = content.rstrip(b"\0") if kind == _LONG_NAME else _pax_path(content) or long_name
            elif kind in _PLAIN:
                shown = long_name.decode("utf-8", "surrogateescape") if long_name is not None else name
                yield TarMember(shown, offset, size)
                long_name = None
            elif kind != _PAX_ALL:  # folders, links
                long_name = None
            offset += -(-size // _BLOCK) * _BLOCK

    def content(self, member: TarMember, most: int) -> memoryview:
        """The first bytes of a member that was just found, at most so many."""
        return self._read(member.offset, min(member.bytes, most))

    def _read(self, offset: int, count: int) -> memoryview:
        """At most so many bytes, from a window of the file that moves with what is asked for."""
        if not self._start <= offset <= offset + count <= self._start + len(self._window):
            is_known = bool(self.tag)
            if is_known and offset >= self.size:
                return memoryview(b"")
            self._start = offset
            try:
                found = self._storage.fetch(self._name, offset, offset + max(count, _WINDOW_BYTES))
            except NoRangesError:
                self._start, self.gives_parts = 0, False
                found = self._storage.fetch(self._name, 0, None)
            if is_known and (found.size, found.tag) != (self.size, self.tag):
                raise DamagedTarError("it changed while it was read")
            self._window, self.size, self.tag = found.content, found.size, found.tag
        return self._window[offset - self._start :][:count]


def _parse(header: bytes, offset: int) -> tuple[str, int, bytes]:
    """Name, size and kind of a member."""
    kept = header[:148] + b" " * 8 + header[156:]
    if len(header) < _BLOCK or _number(header[148:156]) != sum(kept):
        if offset == 0:
            raise DamagedTarError(in_place(header) or "no tar file")
        raise DamagedTarError(f"damaged at byte {offset:,}: no header of a member")
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    size = _number(header[124:136])
    if size is None or size < 0:
        raise DamagedTarError(f"damaged at byte {offset:,}: the size of a member is no number")
    return name.decode("utf-8", "surrogateescape"), size, header[156:157]


def _number(field: bytes) -> int | None:
    """Octal text, or binary for sizes of 8 GiB and more."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:])
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _pax_path(content: bytes) -> bytes | None:
    """The name in an extended header: lines of their length, a key, = and a value."""
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content):
            raise DamagedTarError("an extended header is damaged")
        line, content = rest[: int(length) - len(length) - 1], content[int(length) :]
        key, _, value = line.rstrip(b"\n").partition(b"=")
        if key == b"path":
            return value
    return None
