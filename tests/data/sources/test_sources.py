import gzip
import hashlib
import struct
import threading
import tracemalloc
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from pydantic import ValidationError

from data.errors import UserError
from data.prepare import prepare
from data.prepare.verify import verify
from data.read.config import DataConfig
from data.read.index import read_index, require_folder_path
from data.sources import SOURCES, find_source
from data.sources.idx import IdxSource, read_idx
from data.sources.samples import Samples

SPLITS = {"train": 20, "test": 10}
PARTS = {"train": "train", "test": "t10k"}


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def files():
    """The four files of a small set, by name without .gz: images 28x28, labels 0 .. 9."""
    generator = np.random.default_rng(0)
    made = {}
    for split, count in SPLITS.items():
        images_NHW = generator.integers(0, 256, (count, 28, 28), np.uint8)
        made[f"{PARTS[split]}-images-idx3-ubyte"] = idx(images_NHW)
        made[f"{PARTS[split]}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return made


@pytest.fixture
def packed(files):
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}


def write(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def source(packed, *mirrors):
    md5 = {name.removesuffix(".gz"): hashlib.md5(content).hexdigest() for name, content in packed.items()}
    return IdxSource("small", mirrors, md5, torchvision="Small", splits=SPLITS)


def check(loaded, files):
    assert {split: len(samples.labels_N) for split, samples in loaded.items()} == SPLITS
    for split, samples in loaded.items():
        assert samples.images.tobytes() == files[f"{PARTS[split]}-images-idx3-ubyte"][16:]
        assert samples.labels_N.tolist() == [n % 10 for n in range(SPLITS[split])]


# What is there without a download.


def test_digits_are_stratified_and_the_same_each_time():
    digits = SOURCES["digits"]
    loaded, again = digits.load(None), digits.load(None)
    assert {split: len(samples.labels_N) for split, samples in loaded.items()} == digits.splits
    assert digits.splits == {"train": 1437, "test": 360}
    assert digits.embedded
    for split, samples in loaded.items():
        assert samples.sha256 == again[split].sha256
        assert (samples.images.min(), samples.images.max()) == (0, 255)
        share = np.bincount(samples.labels_N, minlength=10) / len(samples.labels_N)
        assert np.abs(share - 0.1).max() < 0.01
    assert loaded["test"].labels_N[:5].tolist() == [0, 2, 4, 7, 1]
    assert loaded["train"].sha256.startswith("7fc24a9bf20cce3e")


def test_the_checksum_tells_images_labels_and_shapes_apart():
    images_NHW, labels_N = np.zeros((4, 2, 8), np.uint8), np.zeros(4, np.int64)
    sums = {
        Samples.from_arrays(*arrays, classes=10).sha256
        for arrays in [
            (images_NHW, labels_N),
            (images_NHW.reshape(4, 4, 4), labels_N),
            (images_NHW + np.uint8(1), labels_N),
            (images_NHW, labels_N + 1),
        ]
    }
    assert len(sums) == 4


def test_the_static_facts_of_the_large_sets():
    for name in ("mnist", "fashion_mnist"):
        assert SOURCES[name].splits == {"train": 60_000, "test": 10_000}
        assert (SOURCES[name].channels, SOURCES[name].embedded) == (1, False)
        assert len(SOURCES[name].mirrors) >= 2
        assert len(SOURCES[name].md5) == 4


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(UserError, match="did you mean mnist"):
        find_source("minst")
    with pytest.raises(UserError, match="known are digits, mnist"):
        find_source("xyz")


# A folder of the user.


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("train-{000000..000001}.tar", "a pattern of archives"),
        ("train-*.tar", "a pattern of archives"),
        ("train-000000.tar", "an archive"),
        ("images.zip", "an archive"),
        ("images.tar.gz/", "an archive"),
        ("index.json", "a file"),
        ("1.png", "a file"),
    ],
)
def test_what_is_no_folder_is_refused_in_one_line(tmp_path, name, what):
    write(tmp_path, {"1.png": b"", "train-000000.tar": b""})
    if what != "a file":
        with pytest.raises(UserError, match=f"{what}, not a folder: of prepared shards give .*; unpack other archives"):
            require_folder_path(f"{tmp_path}/{name}")
    write(tmp_path, {"index.json": b""})
    for read in (read_index, require_folder_path):
        with pytest.raises(UserError) as caught:
            read(f"{tmp_path}/{name}")
        assert (
            str(caught.value) == f"{tmp_path}/{name} is {what}, not a folder: give the one with index.json, {tmp_path}"
        )
    assert "not a folder" in verify(f"{tmp_path}/{name}")[0]
    with pytest.raises(ValidationError, match=f"{what}, not a folder"):
        DataConfig(source="folder", shards=f"{tmp_path}/{name}")


@pytest.mark.parametrize("name", ["mnist", "celeba", "folder"])
def test_a_packed_source_and_a_file_as_out_are_refused(tmp_path, name):
    write(tmp_path, {"images.zip": b"packed", "notes.txt": b"text"})
    with pytest.raises(UserError, match=r"images.zip is an archive, not a folder: .* unpack"):
        prepare(name, tmp_path / "out", source_dir=tmp_path / "images.zip")
    with pytest.raises(UserError, match=r"notes.txt is a file, not a folder: give the folder that holds it, or"):
        prepare(name, tmp_path / "notes.txt", source_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.zip", "notes.txt"]


@pytest.mark.parametrize("name", ["shards.tar", "train-{0..1}.tar", "new"])
def test_a_folder_may_be_called_as_it_likes(tmp_path, name):
    (tmp_path / name).mkdir()
    require_folder_path(tmp_path / name)


@pytest.mark.parametrize("below", [".", "raw", "Small/raw"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_a_folder_is_read(tmp_path, files, packed, below, compressed, dotted):
    contents = packed if compressed else files
    if dotted:
        contents = {name.replace("-idx", ".idx"): content for name, content in contents.items()}
        (tmp_path / below / "train-images-idx3-ubyte").mkdir(parents=True)  # as some archives have it
    write(tmp_path / below, contents)
    check(source(packed).load(tmp_path), files)


def test_each_file_may_be_packed_and_spelled_as_it_likes(tmp_path, files, packed):
    first, second, third, fourth = files
    write(tmp_path, {first: files[first], f"{second}.gz": packed[f"{second}.gz"]})
    write(tmp_path, {third.replace("-idx", ".idx"): files[third]})
    write(tmp_path, {f"{fourth.replace('-idx', '.idx')}.gz": packed[f"{fourth}.gz"]})
    check(source(packed).load(tmp_path), files)


def test_a_folder_without_the_files_is_refused(tmp_path, files, packed):
    contents = dict(files)
    contents.pop("t10k-labels-idx1-ubyte")
    write(tmp_path, contents)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="t10k-labels-idx1-ubyte.*--source") as caught:
            source(packed).load(folder)
        assert str(folder) in str(caught.value)


def test_a_label_beyond_the_classes_is_refused(tmp_path, files, packed):
    write(tmp_path, files | {"train-labels-idx1-ubyte": idx(np.full(20, 10, np.uint8))})
    with pytest.raises(UserError, match="train-labels-idx1-ubyte holds label 10 of 10 classes"):
        source(packed).load(tmp_path)


# The parser.

GOOD = idx(np.arange(60, dtype=np.uint8).reshape(5, 3, 4))


@pytest.mark.parametrize("name", ["x.gz", "x"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "header"),
        (GOOD[:10], "header"),
        (b"\x1f" + GOOD[1:], "header"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "header"),  # floats
        (GOOD[:3] + b"\x01" + GOOD[4:], "header"),  # one dimension
        (GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], "header"),  # 4 billion images
        (GOOD[:-1], "should unpack to 76 bytes but has only 75"),
        (GOOD + b"\0", "should unpack to 76 bytes but has more"),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path, name, content, fault):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=fault) as caught:
        read_idx(path, (5, 3, 4))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-20],  # cut short
        lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:],  # another CRC
        lambda packed: packed[:12] + b"\xff" * 8 + packed[20:],
        lambda packed: b"not gzip" + packed,
    ],
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "x.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(UserError, match=r"x\.gz"):
        read_idx(path, (5, 3, 4))


def test_a_decompression_bomb_takes_no_memory(tmp_path):
    path = tmp_path / "x.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(GOOD)
        for _ in range(100):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UserError, match="has more"):
        read_idx(path, (5, 3, 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_good_file_is_read(tmp_path):
    (tmp_path / "x").write_bytes(GOOD)
    assert np.array_equal(read_idx(tmp_path / "x", (5, 3, 4)), np.arange(60).reshape(5, 3, 4))


# Downloads, from a server on this machine.


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; a file named <name>.cut is sent as <name>, but breaks off before its last bytes."""

    def do_GET(self):
        cut = self.translate_path(self.path) + ".cut"
        try:
            with open(cut, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:-9])

    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder):
    """The URL at which the folder can be read."""
    with ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "biglearn-vae" / "small"


def test_a_download_is_kept(tmp_path, files, packed, cache):
    with served(write(tmp_path / "mirror", packed)) as url:
        check(source(packed, url).load(None), files)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == packed
    check(source(packed, url).load(None), files)  # the server is gone


def test_a_damaged_file_in_the_cache_is_downloaded_again(tmp_path, files, packed, cache):
    write(cache, packed | {"train-images-idx3-ubyte.gz": b"half a file"})
    with served(write(tmp_path / "mirror", packed)) as url:
        check(source(packed, url).load(None), files)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == packed


LABELS = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda packed: packed.update({LABELS: b"<html>Moved</html>"}), "md5"),
        (lambda packed: packed.update({f"{LABELS}.cut": packed.pop(LABELS)}), "cut short|IncompleteRead"),
        (lambda packed: packed.pop(LABELS), "File not found"),
        (lambda packed: packed.update({LABELS: bytes(65 * 2**20)}), "more than 67,108,864 bytes"),
    ],
    ids=["wrong checksum", "truncated", "absent", "endless"],
)
def test_a_bad_mirror_is_left_for_the_next(tmp_path, files, packed, cache, spoil, fault):
    bad = dict(packed)
    spoil(bad)
    with (
        served(write(tmp_path / "bad", bad)) as bad_url,
        served(write(tmp_path / "good", packed)) as good_url,
    ):
        with pytest.raises(UserError, match=fault) as caught:
            source(packed, bad_url).load(None)
        assert f"{bad_url}/{LABELS}" in str(caught.value)
        assert "--source" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (cache / LABELS).exists()
        assert not list(cache.glob("*.part"))
        check(source(packed, bad_url, good_url).load(None), files)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == packed


def test_no_mirror_answers(tmp_path, packed, cache):
    with served(tmp_path) as url:
        pass
    with pytest.raises(UserError, match="cannot download train-images-idx3-ubyte.gz") as caught:
        source(packed, url, f"{url}/second").load(None)
    for mirror in (url, f"{url}/second"):
        assert f"{mirror}/train-images-idx3-ubyte.gz: " in str(caught.value)
