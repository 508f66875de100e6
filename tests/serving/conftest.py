import io
import json
import threading
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from biglearn_vae.capabilities import BigLearnVAE
from serving.app import Service
from tests.programs import ROOT


@pytest.fixture(scope="session")
def vae() -> BigLearnVAE:
    """Of images of 16x16 pixels, four patches."""
    return BigLearnVAE.load(ROOT / "tests" / "before" / "export")


class Client:
    """What a person would send, and what comes back."""

    def __init__(self, port: int):
        self.port = port

    def ask(self, path: str, content=None, headers=()) -> tuple[int, dict | str]:
        """Status and answer. content: what becomes JSON, or bytes as they are; None asks with GET."""
        body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text, kind = answer.status, answer.read(), answer.headers["content-type"]
        except urllib.error.HTTPError as error:
            status, text, kind = error.code, error.read(), error.headers["content-type"]
        return status, json.loads(text) if kind == "application/json" else text.decode()

    def images(self, path: str, content, headers=()) -> np.ndarray:
        """(N, H, W, 3) uint8."""
        status, answer = self.ask(path, content, headers)
        assert status == 200, answer
        return np.stack([np.asarray(Image.open(io.BytesIO(b64decode(each)))) for each in answer["images"]])


@contextmanager
def serving(models, **options) -> Iterator[Client]:
    """A real server of these models, in a thread."""
    config = uvicorn.Config(Service(models, **options).app(), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(vae) -> Iterator[Client]:
    with serving({"digits": vae}) as started:
        yield started


def picture(seed: int, size: int = 16, alpha: np.ndarray | None = None) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray((255 * alpha).astype(np.uint8)))
    return image


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def text_of(image: Image.Image) -> str:
    return b64encode(png(image)).decode()


def upper_half() -> np.ndarray:
    """(16, 16) bool, what is known."""
    known_HW = np.zeros((16, 16), bool)
    known_HW[:8] = True
    return known_HW


def as_pixels(images: torch.Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().byte().numpy()


def assert_pixels(found: np.ndarray, expected: np.ndarray) -> None:
    """The same but for rounding."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
