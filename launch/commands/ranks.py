"""Several ranks of one command on this machine: signals reach each of them, and their exit code comes back.

torchrun would make 1 of every exit code, and die of SIGUSR1 beside ranks that go on.
"""

import os
import signal
import socket
import subprocess
import time

from trainer.ranks.stop import StopRequest

_POLL_S = 0.2
_GRACE_S = 60  # for ranks that have lost another one to end by themselves


def run_ranks(command: list[str], processes: int, stop: StopRequest) -> int:
    """Run a command as so many ranks to their end; the first exit code that was not 0, as a shell says it, or 0.

    A signal that asks this process to stop is passed on to all ranks, once.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | (world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
        )
        for rank in range(processes)
    ]
    code, told, deadline = 0, False, float("inf")
    while any(rank.poll() is None for rank in ranks):
        if stop.signal and not told:
            _tell(ranks, stop.signal)
            told = True
        code = code or _first_failure(ranks)
        if code and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_S
        if time.monotonic() > deadline:
            _tell(ranks, signal.SIGKILL)
        time.sleep(_POLL_S)
    return code or _first_failure(ranks)


def _tell(ranks: list[subprocess.Popen], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _first_failure(ranks: list[subprocess.Popen]) -> int:
    code = next((rank.returncode for rank in ranks if rank.poll()), 0)
    return code if code >= 0 else 128 - code
