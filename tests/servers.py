"""Real servers of files for tests: S3, and plain HTTP that does what servers do wrong."""

import re
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data.storage import objects

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key-of-tests",
    "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


class FileServer(ThreadingHTTPServer):
    """The files of a folder over HTTP.

    gives_ranges: whether parts of a file can be asked for. faults: what befalls the next requests, one each: a status,
    "cut" (half of the answer, then the connection ends), "wrong" (other bytes) or seconds to wait. asked: how often
    each range of each file was answered in full.
    """

    daemon_threads = True

    def __init__(self, folder: Path, gives_ranges: bool = True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.gives_ranges = folder, gives_ranges
        self.faults: list[int | float | str] = []
        self.asked: Counter = Counter()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else None
        path = self.server.folder / urllib.parse.unquote(self.path).lstrip("/")
        if isinstance(fault, int) or not path.is_file():
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if isinstance(fault, float):
            time.sleep(fault)
        size = path.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = 0, size
        if found and self.server.gives_ranges:
            start, stop = int(found[1]), min(int(found[2] or size - 1) + 1, size)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}-{size}"')
        self.end_headers()
        if not with_body:
            return
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.server.asked[path.name, start, stop] += 1  # before, as who has it all may look at once
        try:
            self.wfile.write(bytes(255 - byte for byte in body) if fault == "wrong" else body)
        except OSError:  # who asked has left
            self.server.asked[path.name, start, stop] -= 1

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving(folder: Path, gives_ranges: bool = True) -> Iterator[FileServer]:
    server = FileServer(folder, gives_ranges)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3_of(folder: Path) -> Iterator[dict[str, str]]:
    """A server of S3 that has the files of the folder in the bucket `bucket`, below `set/`; its environment."""
    from moto.server import ThreadedMotoServer

    objects._store.cache_clear()  # those of another server of this process
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        _send("POST", f"{endpoint}/moto-api/reset")  # what another server of this process held
        _send("PUT", f"{endpoint}/bucket")
        for path in folder.iterdir():
            _send("PUT", f"{endpoint}/bucket/set/{path.name}", path.read_bytes())
        yield {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
    finally:
        server.stop()


def _send(method: str, address: str, content: bytes = b"") -> None:
    kind = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(address, content, kind, method=method), timeout=30).close()
