"""launch/serve.py as a person starts it, and as a cluster ends it."""

import re
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.programs import ROOT
from tests.serving.conftest import Client

EXPORT = ROOT / "tests" / "before" / "export"


@pytest.fixture
def serve(start):
    """serve(*options): the process, once it answers, and a client of it."""

    def run(*options):
        process = start.background("python", "launch/serve.py", "--port", "0", *options)
        line = process.stderr.readline()
        found = re.search(r"at http://127\.0\.0\.1:(\d+),", line)
        assert found, line + process.communicate()[1]
        return process, Client(int(found[1]))

    return run


def test_what_has_come_is_answered_before_it_ends(serve, tmp_path):
    (tmp_path / "token").write_text("of-tests\n")
    process, client = serve("--model", f"digits={EXPORT}", "--token-file", tmp_path / "token")
    assert client.ask("/v1/generate", {})[0] == 401
    headers = {"authorization": "Bearer of-tests"}
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.images, "/v1/generate", {"count": 64}, headers) for _ in range(8)]
        asked[0].result()
        process.send_signal(signal.SIGTERM)
        ended = [each.exception() or each.result().shape for each in asked]
    assert process.wait(60) == 0
    answered = [shape for shape in ended if shape == (64, 16, 16, 3)]
    refused = [error for error in ended if isinstance(error, OSError)]  # they had not come yet
    assert len(answered) + len(refused) == 8
    assert process.communicate()[1].splitlines()[-1] == "ended"


def test_mistakes_are_one_line(start, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "token").write_text("\n")
    shutil.copytree(EXPORT, tmp_path / "export")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, reason in (
            (
                ("--model", EXPORT, "--port", port),
                f"port {port} of 127.0.0.1 is not to be had (Address already in use)",
            ),
            (("--model", tmp_path / "empty"), "empty"),
            (("--model", tmp_path / "absent"), "absent"),
            (
                ("--model", EXPORT, "--model", tmp_path / "export"),
                "two models are called export: name them, as --model",
            ),
            (("--model", EXPORT, "--token-file", tmp_path / "token"), "the first line of"),
            (("--model", EXPORT, "--host", "no.such.host.invalid"), "is not to be had"),
        ):
            done = start("python", "launch/serve.py", *options)
            assert done.returncode == 2
            assert reason in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
