"""Programs as real processes that start in a hundredth of a second: python tests/nursery.py SOCKET

Most of a start is the import of other people's packages. This process has imported them, has no threads, and forks a
child for each program it is asked for, which then runs as by `python PROGRAM`: its own process id, signals, streams,
environment and folder, its own copy of this project's modules, its own end. tests/programs.py is who asks.

What is not as in a process that Python started is that other packages are there already. Tests of the start itself
ask for a cold one.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

_MESSAGE = 2**20  # bytes that a request has at most


PACKAGES = (
    "accelerate", "deepspeed", "deepspeed.runtime.zero.stage3", "matplotlib.pyplot", "PIL.Image", "prometheus_client",
    "pydantic", "safetensors.torch", "scipy.stats", "skimage.metrics", "sklearn.datasets", "sklearn.linear_model",
    "torch._dynamo", "torch.distributed", "tqdm", "yaml",
)  # fmt: skip
_OWN = ("biglearn_vae", "data", "evaluation", "launch", "model", "trainer")


def import_packages() -> None:
    """What the programs of launch/ import; this project's own modules are forgotten again."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in PACKAGES:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
        del sys.modules[name]


def serve(path: str) -> list[str]:
    """Answer until the asker is gone; returns only in a child, the command of the program that it is to become."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need no funeral
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener], [], [], 5)
        if os.getppid() != parent:
            os._exit(0)
        if not ready:
            continue
        asker, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return keep(asker)
        asker.close()


def keep(asker: socket.socket) -> list[str]:
    """Start one program, tell the asker its process id and how it ended; kill it when the asker is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    content, streams, _, _ = socket.recv_fds(asker, _MESSAGE, 3)
    request = json.loads(content)
    program = os.fork()
    if program == 0:
        asker.close()
        become(request["environment"], request["folder"], streams)
        return request["command"]
    for stream in (*streams, 0, 1, 2):
        os.close(stream)
    asker.sendall(f"{program}\n".encode())
    ended = os.pidfd_open(program)
    while ended not in (ready := select.select([ended, asker], [], [])[0]):
        if asker in ready:  # nothing more is ever asked
            os.kill(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    try:
        asker.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    finally:
        os._exit(0)


def become(environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """Have the streams, the environment and the folder that were asked for."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


if __name__ == "__main__":
    import_packages()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the asker ends, and with it all
    command = serve(sys.argv[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")
