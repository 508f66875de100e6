"""A rank does not outlive the launcher that a person, or a cluster, believes to stop.

`deepspeed` and `accelerate launch` leave at a SIGTERM and tell nobody; the ranks would go on as orphans to the end of
the training, and hold its lock and its port.
"""

import os
import re
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

_LAUNCHER = re.compile(
    rb"(.*/)?(deepspeed|torchrun|accelerate|pipeline\.py)|(deepspeed\.launcher|torch\.distributed|accelerate)\..*"
)
_ARGUMENTS = 4  # of a command line, among which the name of a launcher stands: python -u -m NAME


def end_with_launchers() -> None:
    """From here on this process gets a SIGTERM when a launcher above it has ended, however that ended."""
    launchers = [*_launchers()]
    if launchers:
        threading.Thread(target=_wait, args=(launchers,), name="launchers", daemon=True).start()


def _wait(launchers: list[int]) -> None:
    select.select(launchers, [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def _launchers() -> Iterator[int]:
    """A descriptor, readable once it has ended, of each process above this one that is a launcher. Linux only."""
    if not hasattr(os, "pidfd_open"):
        return
    process = os.getppid()
    while process > 0:
        try:
            descriptor = os.pidfd_open(process)
            command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[:_ARGUMENTS]
            parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended, or belongs to somebody who does not show it
            return
        if any(map(_LAUNCHER.fullmatch, command)):
            yield descriptor
        else:
            os.close(descriptor)
        process = parent
