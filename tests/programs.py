"""How tests start programs: start("python", "launch/train.py", ...) from the root of the repository."""

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
_PROGRAMS = ("python", "torchrun", "deepspeed")  # of this environment
_OF_A_WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_HANGS_S = 600  # ends a hang, judges no speed

ended: list[subprocess.CompletedProcess] = []  # of the test that runs: what is shown when it fails


class Warm:
    """A program that tests/nursery.py started, with what subprocess.Popen has."""

    def __init__(self, nursery: str, command: list[str], folder: Path, environment: dict[str, str]):
        self.args, self.returncode, self._known = command, None, b""
        ours, theirs = zip(*(os.pipe() for _ in range(2)), strict=True)
        self.stdout, self.stderr = (open(number) for number in ours)  # noqa: SIM115
        self._nursery = socket.socket(socket.AF_UNIX)
        self._nursery.connect(nursery)
        request = {"command": command[1:], "folder": str(folder), "environment": environment}
        with open(os.devnull) as nothing:
            socket.send_fds(self._nursery, [json.dumps(request).encode()], [nothing.fileno(), *theirs])
        for number in theirs:
            os.close(number)
        self.pid = int(self._word())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._nursery], [], [], 0)[0]:
            self.returncode = int(self._word())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._nursery], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = {}

        def read(stream) -> None:
            texts[stream] = stream.read()

        readers = [threading.Thread(target=read, args=(stream,), daemon=True) for stream in (self.stdout, self.stderr)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)  # a child of the program may hold the streams
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.stdout.close()
        self.stderr.close()
        return texts[self.stdout], texts[self.stderr]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _word(self) -> bytes:
        """The next line of what the nursery says."""
        while b"\n" not in self._known:
            said = self._nursery.recv(64)
            assert said, "the nursery has ended"
            self._known += said
        word, _, self._known = self._known.partition(b"\n")
        return word


class Starter:
    """start(command...) runs a command; `python` and launchers come from this environment.

    A program of Python's starts warm, out of the nursery, unless cold=True. folder: where it runs, the root of the
    repository by default. Everything in capitals is added to the environment.
    """

    def __init__(self):
        self._nursery: subprocess.Popen | None = None

    def __call__(self, *command, **options) -> subprocess.CompletedProcess:
        return self.finish(self.background(*command, **options))

    def ranks(self, count: int, *command, **options) -> subprocess.CompletedProcess:
        """The program as a world of this many ranks, without any launcher: all streams together, the worst code."""
        done = [self.finish(process) for process in self.ranks_in_background(count, *command, **options)]
        codes, outs, errs = zip(*((each.returncode, each.stdout, each.stderr) for each in done), strict=True)
        return subprocess.CompletedProcess(done[0].args, max(codes, key=abs), "".join(outs), "".join(errs))

    def ranks_in_background(self, count: int, *command, **options) -> list[subprocess.Popen | Warm]:
        world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports())}
        return [
            self.background("python", *command, **world, RANK=str(rank), LOCAL_RANK=str(rank), **options)
            for rank in range(count)
        ]

    def finish(self, process: subprocess.Popen | Warm) -> subprocess.CompletedProcess:
        try:
            out, err = process.communicate(timeout=_HANGS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return ended[-1]

    def background(self, *command, cold: bool = False, folder: Path = ROOT, **environment) -> subprocess.Popen | Warm:
        is_warm = command[0] == "python" and not cold
        command = [str(BIN / part) if part in _PROGRAMS else str(part) for part in command]
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_WORLD}
        environment = inherited | {"OMP_NUM_THREADS": "1"} | environment
        if is_warm:
            return Warm(self._warm(), command, folder, environment)
        return subprocess.Popen(
            command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )

    def _warm(self) -> str:
        """The socket of the nursery, which is started when it is first asked."""
        if self._nursery is None:
            self._folder = tempfile.TemporaryDirectory(prefix="nursery-")
            command = [sys.executable, "tests/nursery.py", f"{self._folder.name}/socket"]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._nursery = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
            )
            assert "ready" in iter(lambda: self._nursery.stdout.readline().strip(), "")
        return f"{self._folder.name}/socket"

    def stop(self) -> None:
        if self._nursery:
            self._nursery.kill()
            self._nursery.wait()
            self._folder.cleanup()


def free_ports(count: int = 1) -> int:
    """The first of so many ports in a row that nobody has, below those that the kernel gives to clients.

    By chance, so that other workers and other suites on this machine hardly ever choose the same.
    """
    while True:
        first = random.SystemRandom().randrange(11_000, 28_000, 10)
        try:
            for distance in range(count):
                socket.create_server(("127.0.0.1", first + distance)).close()
        except OSError:
            continue
        return first
