"""The service under load, on the loopback: latency and rate with batches, and without.

A service of an untrained model, in a process of its own, is asked for in-paintings (one draw, a random half of the
pixels' patches missing) by so many clients at once, each of which asks again when it has its answer. Clients and
service share this machine's cores. Without batches each request is computed alone.

--hostile N: so many requests that are no good (cut, of wrong types, of random bytes, too large, of other encodings,
left in the middle), from eight clients: which answers come, and how the memory of the service grows.

examples:
  python benchmarks/serving.py
  python benchmarks/serving.py --configs configs/digits.yaml --clients 1 8 --seconds 5
  python benchmarks/serving.py --hostile 10000
"""

import argparse
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path
from typing import TextIO

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import numpy as np
from PIL import Image

from launch.commands.machine import machine

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("configs/digits.yaml", "configs/mnist_case1.yaml")
JSON = {"content-type": "application/json"}


def parse(arguments: list[str]) -> argparse.Namespace:
    description, _, examples = __doc__.partition("examples:\n")
    parser = Parser(description=description, epilog="examples:\n" + examples)
    add = parser.add_argument
    add("--configs", nargs="+", metavar="FILE", default=CONFIGS, help="default: digits and MNIST Case 1")
    add("--clients", nargs="+", type=whole_number, metavar="N", default=(1, 8, 64), help="default: 1 8 64")
    add("--seconds", type=whole_number, default=10, metavar="N", help="of each measurement; default: %(default)s")
    add("--hostile", type=whole_number, metavar="N", help="the second part, with so many requests")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    print(f"on {machine('torch', 'fastapi', 'uvicorn')['hardware']}")
    if options.hostile:
        attack(options)
        return 0
    print("\n| model | clients | batches | requests/s | p50 ms | p95 ms | p99 ms |\n|---|---|---|---|---|---|---|")
    for config in options.configs:
        with exported(config) as (folder, question):
            for clients in options.clients:
                for batches in (True, False):
                    with served(folder, batches) as (port, _):
                        ask_for(port, question, clients, 2)  # what is done once
                        latencies_N, seconds = ask_for(port, question, clients, options.seconds)
                    p50, p95, p99 = 1000 * np.percentile(latencies_N, (50, 95, 99))
                    row = (Path(config).stem, clients, "yes" if batches else "no", f"{len(latencies_N) / seconds:,.0f}")
                    print(f"| {' | '.join(map(str, row))} | {p50:.0f} | {p95:.0f} | {p99:.0f} |", flush=True)
    return 0


@contextmanager
def exported(config_path: str) -> Iterator[tuple[Path, bytes]]:
    """An untrained model of a configuration, as an export, and a question for it."""
    from biglearn_vae.export import Description, write_export
    from trainer.build import build_task
    from trainer.config import load_config

    config = load_config(config_path)
    size, patch = config.data.image_size, config.data.patch_size
    chance = np.random.default_rng(0)
    known_HW = np.kron(chance.random((size // patch, size // patch)) < 0.5, np.ones((patch, patch))).astype(bool)
    image = Image.fromarray(chance.integers(0, 256, (size, size, 3), np.uint8))
    image.putalpha(Image.fromarray(known_HW))
    content = BytesIO()
    image.save(content, "png")
    question = json.dumps({"image": b64encode(content.getvalue()).decode()}).encode()
    with tempfile.TemporaryDirectory() as folder:
        weights = dict(build_task(config).model.named_parameters())
        write_export(Path(folder) / "model", Description.of(config, 0), weights, None)
        yield Path(folder) / "model", question


@contextmanager
def served(folder: Path, batches: bool = True) -> Iterator[tuple[int, int]]:
    """The port of a service, and the number of its process."""
    command = [sys.executable, ROOT / "launch" / "serve.py", "--model", folder, "--port", "0"]
    command += [] if batches else ["--batch-images", "1"]
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(list(map(str, command)), stderr=words, text=True, cwd=ROOT)
        try:
            while not (found := _port_in(words)):
                time.sleep(0.1)
                assert process.poll() is None
            yield found, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            words.seek(0)
            if unexpected := words.read().splitlines()[1:-1]:
                print(f"the service said: {unexpected[-1]} ({len(unexpected):,} lines)")


def _port_in(words: TextIO) -> int | None:
    words.seek(0)
    found = re.search(r"at http://127\.0\.0\.1:(\d+),", words.read())
    return int(found[1]) if found else None


def ask_for(port: int, question: bytes, clients: int, seconds: float) -> tuple[np.ndarray, float]:
    """Seconds of each answer, and in which time they came."""
    until = time.perf_counter() + seconds

    def client(_) -> list[float]:
        connection, latencies = HTTPConnection("127.0.0.1", port), []
        while (began := time.perf_counter()) < until:
            connection.request("POST", "/v1/inpaint", question, JSON)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            latencies.append(time.perf_counter() - began)
        return latencies

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [each for latencies in pool.map(client, range(clients)) for each in latencies]
    return np.array(found), time.perf_counter() - began


def attack(options: argparse.Namespace) -> None:
    with exported(options.configs[0]) as (folder, question), served(folder) as (port, pid):
        ask_for(port, question, 8, 2)
        resident = [_resident_mb(pid)]
        found: Counter = Counter()
        with ThreadPoolExecutor(8) as pool:
            for part in range(4):
                quarter = range(part * options.hostile // 4, (part + 1) * options.hostile // 4)
                found.update(pool.map(lambda number: _hostile(port, question, number), quarter))
                resident.append(_resident_mb(pid))
        answered, _ = ask_for(port, question, 1, 1)
    print(f"{options.hostile:,} hostile requests: {', '.join(f'{n:,} x {what}' for what, n in found.most_common())}")
    print(f"memory of the service before and after each quarter, MB: {', '.join(f'{mb:.0f}' for mb in resident)}")
    print(f"good requests answered afterwards, in a second: {len(answered)}")


def _hostile(port: int, question: bytes, number: int) -> str:
    """What came of one."""
    chance = random.Random(number)
    content, headers = bytearray(question), dict(JSON)
    kind = chance.randrange(7)
    if kind == 0:
        content = content[: chance.randrange(len(content))]
    elif kind == 1:
        for _ in range(8):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif kind == 2:
        values = (None, [], {}, -1, 1e999, "x", True, [[]] * 50)
        content = json.dumps({name: chance.choice(values) for name in ("image", "mask", "draws", "seed")}).encode()
    elif kind == 3:
        content = chance.randbytes(chance.randrange(5000))
    elif kind == 4:
        content = b"[" * chance.randrange(10**6)
    elif kind == 5:
        headers["content-type"] = chance.choice(["multipart/form-data; boundary=x", "text/html; charset=nothing", ""])
    else:
        with socket.create_connection(("127.0.0.1", port)) as sent:
            sent.sendall(b"POST /v1/inpaint HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + question[:99])
        return "left in the middle"
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/inpaint", bytes(content), headers)
        return f"status {connection.getresponse().status}"
    except (OSError, HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def _resident_mb(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


if __name__ == "__main__":
    run(main)
