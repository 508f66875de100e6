"""A log of numbers: one JSON object a line."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from data.files import write_aside

log = logging.getLogger(__name__)


class JsonLines:
    """A sink and a log: one JSON object a line. Lines after `images`, of steps that are made again, are dropped.

    spent: of the lines that were kept. What a full disk refuses waits in memory and is written with a later line.
    """

    def __init__(self, path: Path, images: int):
        self.path = path
        kept = [line for line in read_lines(path) if line["images"] <= images]
        self.spent = spent(kept)
        write_aside(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def __call__(self, line: dict) -> None:
        rounded = {k: float(f"{v:.6g}") if v and k.startswith(_ROUNDED) else v for k, v in line.items()}
        refused_before = bool(self._waiting)
        self._waiting += (json.dumps(rounded, allow_nan=False) + "\n").encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not refused_before:
                log.warning("%s: %s; its lines wait in memory", self.path, error.strerror)


_ROUNDED = ("seconds_", "images_per_second")  # losses keep every digit


def read_lines(path: Path) -> list[dict]:
    """The lines of a log, but for those that are none, as a killed process may leave the last one."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("images"), int):
            lines.append(line)
    return lines


def spent(lines: Iterable[dict]) -> tuple[float, float]:
    """Wall time of training by the lines of a run, without evaluation and checkpoints; and device-seconds."""
    seconds, of_devices, images = 0.0, 0.0, 0
    for line in lines:
        rate, world_size = line.get("images_per_second"), line.get("world_size", 1)
        if isinstance(rate, int | float) and rate > 0 and isinstance(world_size, int):
            duration = (line["images"] - images) / rate
            seconds, of_devices = seconds + duration, of_devices + duration * world_size
        images = line["images"]
    return seconds, of_devices
