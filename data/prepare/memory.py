"""How much memory there is."""

from collections.abc import Iterator
from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory that processes can still take without swapping, within the limits of their control group.

    root: where /proc and /sys are. What cannot be read there does not limit.
    """
    return min([_free(root / "proc/meminfo"), *_limits(root)], default=2**63)


def _free(meminfo: Path) -> int:
    for line in _lines(meminfo):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 2**63


def _limits(root: Path) -> Iterator[int]:
    """Of the control groups of this process, of either version, and of those that hold them."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        place = base / group.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(base):
                yield from (int(text) for text in _lines(folder / name) if text.isdecimal())  # "max": no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
