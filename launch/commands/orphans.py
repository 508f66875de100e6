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

# The program of a command line, or what a Python runs, possibly behind options, as -u, and -m.
_LAUNCHER = re.compile(
    rb"(([^\0]*/)?python[0-9.]*\0(-[a-zA-Z]*\0)*)?"
    rb"(([^\0]*/)?(deepspeed|torchrun|accelerate)|[^\0]*launch/pipeline\.py"
    rb"|(deepspeed\.launcher|torch\.distributed|accelerate)\.[^\0]*)\0.*",
    re.DOTALL,
)


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
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended, or belongs to somebody who does not show it
            return
        if _LAUNCHER.fullmatch(command):
            yield descriptor
        else:
            os.close(descriptor)
        process = parent
