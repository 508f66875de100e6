"""Requests that are not answered: each with a plain reason, none with a 500, and the next good one is answered."""

import random
import socket
import struct
import time
import zlib
from base64 import b64encode

import pytest

from serving.questions import Limits
from tests.serving.conftest import picture, serving, text_of

IMAGE = text_of(picture(0))


def header_of(width: int, height: int) -> str:
    """A PNG that says so, and has no pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b64encode(content).decode()


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"{", 422, "Invalid JSON"),
        (b"[" * 100_000, 422, "Invalid JSON"),
        (b"\xff\xfe", 422, "Invalid JSON"),
        ([], 422, "should be an object"),
        ({}, 422, "image: Field required"),
        ({"image": 3}, 422, "image: give a PNG or JPEG file in base64"),
        ({"image": "!"}, 422, "image: this is no base64"),
        ({"image": "aGVsbG8="}, 422, "image: no PNG or JPEG file"),
        ({"image": IMAGE[: len(IMAGE) // 8 * 4]}, 422, "image: "),
        ({"image": header_of(60_000, 60_000)}, 413, "image: it has more than 16,777,216 pixels"),
        ({"image": header_of(5000, 5000)}, 413, "image: it has more than 16,777,216 pixels"),
        ({"image": IMAGE, "mask": text_of(picture(0, size=9))}, 422, "mask: it has another size than the image"),
        ({"image": IMAGE, "draws": 65}, 422, "draws: 65 are more than 64"),
        ({"image": IMAGE, "draws": 0}, 422, "draws: Input should be greater than or equal to 1"),
        ({"image": IMAGE, "draws": "many"}, 422, "draws: Input should be a valid integer"),
        ({"image": IMAGE, "seed": -1}, 422, "seed: "),
        ({"image": IMAGE, "seed": 2**63}, 422, "seed: "),
        ({"image": IMAGE, "path": "/etc/passwd"}, 422, "path: Extra inputs are not permitted; known are model, image"),
        ({"image": IMAGE, "model": "../other"}, 422, "model: ../other is none of digits"),
    ],
)
def test_mistakes_have_a_plain_reason(client, content, status, reason):
    found = client.ask("/v1/inpaint", content)
    assert found[0] == status
    assert reason in found[1]["error"]
    assert "\n" not in found[1]["error"]


def test_a_form_that_is_none_has_a_plain_reason(client):
    for content, kind in ((b"x", "multipart/form-data; boundary=b"), (b"x", "multipart/form-data"), (b"--b\r\n", "")):
        status, answer = client.ask("/v1/inpaint", content, {"content-type": kind})
        assert status == 422
        assert answer["error"]


def test_what_is_not_there_is_said_alike(client):
    assert client.ask("/v1/train", {}) == (404, {"error": "Not Found"})
    assert client.ask("/v1/inpaint") == (405, {"error": "Method Not Allowed"})


def test_a_large_request_is_refused_before_it_has_come(vae):
    with serving({"digits": vae}, limits=Limits(most_bytes=1000)) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as sent:
            sent.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{")
            assert b" 413 " in sent.recv(100)
        with socket.create_connection(("127.0.0.1", client.port)) as sent:
            sent.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            sent.sendall(b"7d0\r\n" + b" " * 2000 + b"\r\n")
            assert b" 413 " in sent.recv(100)
        assert client.images("/v1/generate", {}).shape == (1, 16, 16, 3)


def test_a_slow_request_is_given_up(vae):
    with serving({"digits": vae}, limits=Limits(body_s=0.2)) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as sent:
            sent.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            assert b" 408 " in sent.recv(100)
        assert client.images("/v1/generate", {}).shape == (1, 16, 16, 3)
        metrics = client.ask("/metrics")[1]
    assert 'biglearn_service_requests_total{route="generate",status="408"} 1.0' in metrics
    assert 'biglearn_service_request_seconds_count{route="generate"} 1.0' in metrics  # its own slowness is none of ours


def test_a_full_queue_is_said_at_once(vae):
    with serving({"digits": vae}, most_waiting=4) as client:
        assert client.ask("/v1/generate", {"count": 5})[0] == 429
        assert client.images("/v1/generate", {"count": 4}).shape == (4, 16, 16, 3)


def test_a_token_is_asked_for_where_there_is_one(vae):
    with serving({"digits": vae}, token="of-tests") as client:
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "Bearer \xe9"}):
            assert client.ask("/v1/generate", {}, headers)[0] == 401
        assert client.ask("/v1/generate", {}, {"authorization": "Bearer of-tests"})[0] == 200
        assert client.ask("/healthz")[0] == 200


def test_hostile_requests_cost_nothing(client):
    chance = random.Random(0)
    good = b'{"image": "%s", "draws": 1, "seed": 0}' % IMAGE.encode()
    for _ in range(300):
        content = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        kind = chance.choice(["application/json", "multipart/form-data; boundary=x", "text/plain; charset=latin-9"])
        status, _ = client.ask("/v1/inpaint", bytes(content[: chance.randint(0, len(content))]), {"content-type": kind})
        assert status in (200, 413, 422)
    with socket.create_connection(("127.0.0.1", client.port)) as sent:
        sent.sendall(b"POST /v1/inpaint HTTP/1.1\r\nContent-Length: 9\r\n\r\n")  # and leaves
    time.sleep(0.1)
    assert client.images("/v1/inpaint", good).shape == (1, 16, 16, 3)
    metrics = client.ask("/metrics")[1]
    assert 'biglearn_service_requests_total{route="inpaint",status="500"} 0.0' in metrics


def test_a_fault_of_ours_is_counted(vae, monkeypatch):
    monkeypatch.setattr(vae, "generate", lambda *args, **options: 1 / 0)
    with serving({"digits": vae}) as client:
        before, status, after = client.ask("/metrics")[1], client.ask("/v1/generate", {})[0], client.ask("/metrics")[1]
    assert status == 500
    for number, metrics in enumerate((before, after)):  # from 0 on, so that Prometheus sees the first
        assert f'biglearn_service_requests_total{{route="generate",status="500"}} {number}.0' in metrics
