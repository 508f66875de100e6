"""An export as a model repository: its card, its files, what replaces what, and how it is fetched."""

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.hub.card import _DATA_SETS, model_card
from biglearn_vae.hub.files import require_replaceable, write_beside
from data.errors import UserError
from data.sources import SOURCES
from data.storage.addresses import TARS
from data.storage.hub import download
from tests.biglearn_vae.hub.models import untrained
from tests.programs import ROOT

WORDS = {"preview": "Samples", "evaluation": "No figures.", "license_id": None, "has_onnx": False}


def metadata(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL)[1])


@pytest.mark.parametrize("method", ["biglearn_u", "biglearn_t", "vae"])
def test_the_example_of_a_card_runs_in_its_folder(method, tmp_path, monkeypatch):
    vae = untrained(method, "query_only", of_codes=method == "biglearn_t")
    vae.export(tmp_path)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", model_card(vae, **WORDS), re.DOTALL)
    found: dict = {}
    exec(example, found)
    assert torch.equal(found["vae"].generate(2), vae.generate(2))
    for name in {"images", "z", "completed", "again"} & found.keys():
        said = re.search(rf"^{name} = .*# .*\((\d+(?:, \d+)*)\)", example, re.MULTILINE)[1]
        assert tuple(found[name].shape) == tuple(map(int, said.split(", ")))


def test_a_card_claims_nothing_that_is_not_known():
    vae = untrained("biglearn_u", "query_only")
    assert metadata(model_card(vae, **WORDS)).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "not stated" in model_card(vae, **WORDS)
    card = model_card(vae, **WORDS | {"license_id": "cc-by-4.0"})
    assert metadata(card)["license"] == "cc-by-4.0"
    assert "not stated" not in card
    assert f"{sum(p.numel() for p in vae.model.parameters()):,}" in card
    assert {*SOURCES, TARS} == _DATA_SETS.keys()


def test_an_export_replaces_what_it_wrote_and_nothing_of_a_person(tmp_path):
    write_beside(tmp_path, "card\n", {"preview.png": b"1", "encoder.onnx": b"2"})
    (tmp_path / "notes.txt").write_text("mine")
    write_beside(tmp_path, "another\n", {"preview.png": b"3"})
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "preview.png", "notes.txt"}
    written = {name: (tmp_path / name).read_bytes() for name in ("README.md", "preview.png")}
    for name, content in (
        ("README.md", written["README.md"] + b"A word of mine.\n"),
        ("README.md", b"A word of mine.\n" + written["README.md"]),
        ("README.md", b"My card.\n"),
        ("preview.png", b"my picture"),
        ("decoder.onnx", b"my graph"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is no export's, or was edited since"):
            write_beside(tmp_path, "third\n", {"preview.png": b"4"})
        assert (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()
        for known, before in written.items():
            (tmp_path / known).write_bytes(before)
    require_replaceable(tmp_path)


class Hub(ThreadingHTTPServer):
    """The hub with one repository, owner/name, of the files of a folder. asked: the names of those that were."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder, self.asked = folder, set()

    def environment(self, home: Path) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.server_address[1]}"
        return {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        files = [path.name for path in self.server.folder.iterdir()]
        commit, path = "1" * 40, self.path.partition("?")[0]
        name = path.removeprefix(f"/owner/name/resolve/{commit}/")
        headers = {}
        if name in files:
            self.server.asked.add(name)
            content = (self.server.folder / name).read_bytes()
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": commit}
        elif path == "/api/models/owner/name/revision/main":
            siblings = [{"rfilename": name} for name in files]
            content = json.dumps({"id": "owner/name", "sha": commit, "siblings": siblings}).encode()
        elif path == f"/api/models/owner/name/tree/{commit}":
            sizes = {name: (self.server.folder / name).stat().st_size for name in files}
            tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            content = json.dumps(tree).encode()
        else:
            content, headers = b"", {"X-Error-Code": "RepoNotFound"}
        self.send_response(200 if content else 404)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(tmp_path):
    server = Hub(tmp_path / "repository")
    server.folder.mkdir()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ran(program: str, environment: dict[str, str]) -> str:
    """What a program says that knows the hub of this environment, which is read when it is imported."""
    paths = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=paths | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_of_the_hub_is_fetched_without_what_could_run(hub, tmp_path):
    vae = untrained("biglearn_u", "query_only")
    vae.export(hub.folder)
    for name in ("README.md", "modeling.py", "pytorch_model.bin", "config.yaml"):
        (hub.folder / name).write_text("raise SystemExit(1)")
    program = f"""
from biglearn_vae import BigLearnVAE
BigLearnVAE.from_pretrained("owner/name").generate(2).numpy().tofile({str(tmp_path / "x")!r})
"""
    ran(program, hub.environment(tmp_path / "home"))
    assert np.allclose(np.fromfile(tmp_path / "x", np.float32), vae.generate(2).flatten(), atol=1e-5)
    assert hub.asked == {"config.json", "model.safetensors"}


def test_what_was_fetched_serves_without_a_network_and_else_one_line_says_why(hub, tmp_path):
    (hub.folder / "config.json").write_text("{}")
    program = """
from data.errors import UserError
from data.storage.hub import download
for name in ("owner/name", "owner/other", "no/such/folder"):
    try:
        print(sorted(path.name for path in download(name, ["config.json"]).iterdir()))
    except UserError as error:
        print(error)
"""
    environment = hub.environment(tmp_path / "home")
    found, other, none = ran(program, environment).splitlines()
    assert found == "['config.json']"
    assert re.match(r"owner/other is no folder here, and the hub does not give it \(404", other)
    assert re.match(r"no/such/folder is no folder here, and the hub does not give it \(Repo id must be", none)
    shutil.rmtree(hub.folder)
    silent = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    found, other, _ = ran(program, silent).splitlines()
    assert found == "['config.json']"
    assert re.match(r"owner/other is no folder here, and the hub does not give it \(.*Connection refused", other)


def test_a_folder_needs_no_hub_and_a_name_says_what_is_to_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    vae = untrained("vae", "dense")
    vae.export(tmp_path)
    assert BigLearnVAE.from_pretrained(tmp_path).description == vae.description
    with pytest.raises(UserError, match=r"pip install 'biglearn-vae\[hub\]'"):
        download("owner/name", ["config.json"])
