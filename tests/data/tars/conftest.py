import io
import json
import logging
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from data.storage import objects
from tests.servers import S3_ENVIRONMENT, FileServer, s3_of, serving


def write_tars(folder: Path, images: int = 400, per_tar: int = 100, suffix: str = "png", size: int = 8) -> Path:
    """The first digits as webdataset writes them, with their labels in cls and in a JSON field."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    logging.disable()
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=per_tar, verbose=0) as writer:
        for number in range(images):
            content = io.BytesIO()
            picture = (
                Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).convert("RGB").resize((size, size))
            )
            picture.save(content, "jpeg" if suffix == "jpg" else suffix)
            label = int(digits.target[number])
            fields = json.dumps({"digit": label, "caption": "a digit"})
            writer.write({"__key__": f"{number:06d}", suffix: content.getvalue(), "cls": str(label), "json": fields})
    logging.disable(logging.NOTSET)
    return folder


@pytest.fixture(scope="session")
def tars(tmp_path_factory) -> Path:
    """Four tars of 100 digits each, 8x8 pixels. Copy it to change it."""
    return write_tars(tmp_path_factory.mktemp("tars") / "set")


@pytest.fixture
def impatient(monkeypatch):
    """What fails is asked for five times more, at once."""
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    monkeypatch.setattr(
        objects, "RETRY", {"max_retries": 5, "retry_timeout": timedelta(seconds=20), "backoff": backoff}
    )
    objects._store.cache_clear()
    yield
    objects._store.cache_clear()


@pytest.fixture
def web(tars, impatient):
    with serving(tars) as server:
        yield server


@pytest.fixture(params=["http", "s3", "gs"])
def faulty(request, tars, tmp_path, impatient, monkeypatch) -> tuple[FileServer, str]:
    """A server that does what it is told to do wrong, and the address of the tars there; S3 and GCS read alike."""
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "bucket").symlink_to(tars)
    with serving(tmp_path / "stores") as server:
        for key, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": server.address}.items():
            monkeypatch.setenv(key, value)
        account = {"gcs_base_url": server.address, "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        yield server, f"{server.address}/bucket" if request.param == "http" else f"{request.param}://bucket"


@pytest.fixture
def s3(tars, impatient, monkeypatch) -> str:
    """The address of the tars in S3."""
    with s3_of(tars) as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        yield "s3://bucket/set"
