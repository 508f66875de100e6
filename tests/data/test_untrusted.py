"""Files that were damaged or made by an enemy: each gives an error of ours, a named damaged image, or the right data.

Never another exception, a crash, or an answer that does not come.
"""

import hashlib
import io
import json
import pickle
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.errors import UserError
from data.prepare import prepare
from data.prepare.verify import verify
from data.read.index import Index, load_index
from data.read.stream import Stream
from data.sources.celeba import ATTRIBUTES, IMAGES, PARTITION, CelebA
from data.sources.images import DamagedImageError, decode, has_more_frames


def bounded(examples):
    """The same examples each time; the folder that an example alters is made whole by the next one."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def assert_plain(error):
    """One line, and the same in each run: no address of an object."""
    assert str(error).isprintable()
    assert " at 0x" not in str(error)


@st.composite
def changes(draw, same_length=False):
    """A function that alters bytes at a few places: flips, cuts, inserts, deletes, repeats."""
    kinds = ["flip", "overwrite"] if same_length else ["flip", "overwrite", "cut", "insert", "delete", "repeat"]
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(kinds), st.floats(0, 1), st.integers(1, 64), st.binary(min_size=1, max_size=8)),
            min_size=1,
            max_size=4,
        )
    )

    def change(content):
        for kind, where, length, new in steps:
            at = int(where * max(len(content) - 1, 0))
            before, after = content[:at], content[at:]
            if kind == "flip" and after:
                content = before + bytes([after[0] ^ (new[0] or 1)]) + after[1:]
            elif kind == "overwrite":
                content = before + new[: len(after)] + after[len(new) :]
            elif kind == "cut":
                content = before
            elif kind == "insert":
                content = before + new + after
            elif kind == "delete":
                content = before + after[length:]
            elif kind == "repeat":
                content = before + after[:length] * 2 + after[length:]
        return content

    return change


# Encoded images.


def _encoded(format, mode="RGB", **options):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (20, 24))]}
ENCODED = {
    "jpeg": _encoded("JPEG", exif=EXIF),
    "jpeg progressive": _encoded("JPEG", progressive=True),
    "jpeg cmyk": _encoded("JPEG", "CMYK"),
    "png": _encoded("PNG", exif=EXIF),
    "png palette": _encoded("PNG", "P", transparency=3),
    "png alpha": _encoded("PNG", "RGBA"),
    "gif": _encoded("GIF"),
    "gif animated": _encoded("GIF", **FRAMES),
    "bmp": _encoded("BMP"),
    "tiff": _encoded("TIFF"),
    "tiff lzw": _encoded("TIFF", compression="tiff_lzw"),
    "tiff jpeg": _encoded("TIFF", compression="jpeg"),
    "webp": _encoded("WEBP"),
    "webp animated": _encoded("WEBP", **FRAMES),
    "ppm": _encoded("PPM"),
    "pgm": _encoded("PPM", "L"),
    "avif": _encoded("AVIF", exif=EXIF),
}


@pytest.mark.parametrize("name", ENCODED)
@bounded(100)
@given(change=changes())
def test_an_altered_image_is_an_image_or_damaged(name, change):
    content = change(ENCODED[name])
    has_more_frames(content)
    try:
        image = decode(content)
    except DamagedImageError as error:
        assert_plain(error)
    else:
        assert image.dtype == np.uint8
        assert image.shape == (len(image), len(image), 3)


@bounded(100)
@given(content=st.binary(max_size=200), head=st.sampled_from([b"", *(content[:20] for content in ENCODED.values())]))
def test_any_bytes_are_an_image_or_damaged(content, head):
    try:
        decode(head + content)
    except DamagedImageError as error:
        assert_plain(error)


def test_a_bomb_is_one_damaged_image(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    for name, content in (("train/1.png", bomb), ("train/2.png", ENCODED["png"]), ("test/1.png", ENCODED["png"])):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    index = prepare("folder", tmp_path / "out", source_dir=tmp_path / "folder", image_size=8, progress=False)
    assert [(image.name, image.reason) for image in index.replaced] == [("train/1.png", "more than 134,217,728 pixels")]


# Lists of CelebA.


@pytest.fixture(scope="module")
def celeba(tmp_path_factory):
    root = tmp_path_factory.mktemp("celeba")
    (root / IMAGES).mkdir()
    names = [f"{n:06d}.jpg" for n in range(1, 9)]
    for name in names:
        (root / IMAGES / name).write_bytes(b"")
    lists = {
        PARTITION: "".join(f"{name} {n % 3}\n" for n, name in enumerate(names)),
        ATTRIBUTES: "8\nYoung Bald\n" + "".join(f"{name} 1 -1\n" for name in names),
    }
    return root, {name: text.encode() for name, text in lists.items()}, set(names)


@pytest.mark.parametrize("altered", [PARTITION, ATTRIBUTES])
@bounded(150)
@given(change=changes())
def test_an_altered_list_is_refused_or_names_images_that_are_there(celeba, altered, change):
    root, lists, names = celeba
    for name, content in lists.items():
        (root / name).write_bytes(change(content) if name == altered else content)
    try:
        loaded = CelebA().load(root)
    except UserError as error:
        assert_plain(error)
    else:
        assert {name for samples in loaded.values() for name in samples.images.names} == names
        for samples in loaded.values():
            assert 0 <= samples.labels_N.min() <= samples.labels_N.max() < samples.classes


# Shards and their index.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(index, folder, pixels and labels in file order) of small digits."""
    root = tmp_path_factory.mktemp("whole")
    index = prepare("digits", root, image_size=4, record_images=50, shard_records=4, progress=False)
    batch = _all(Stream(index, root, "test", patch_size=4, seed=None))
    return index, root, batch


@pytest.fixture
def copy(whole, tmp_path):
    root = tmp_path / "copy"
    if not root.exists():
        shutil.copytree(whole[1], root)
    return root


def _all(stream):
    return stream.read(torch.arange(stream.images))


def _check(root, index, whole):
    """Open and read the test split in both ways. Whatever was done to the files, the images are the right ones."""
    found = []
    for memory_bytes in (0, 2**31):
        try:
            stream = Stream(index, root, "test", patch_size=4, seed=None, memory_bytes=memory_bytes)
            batch = _all(stream)
        except UserError as error:
            assert_plain(error)
            found.append("refused")
            continue
        source = [_stand_in(stream.damaged, n, stream.images) for n in range(stream.images)]
        assert torch.equal(batch.x_BLD, whole[2].x_BLD[source])
        assert torch.equal(batch.label_B, whole[2].label_B[source])
        found.append(stream.damaged)
    assert found[0] == found[1]


def _stand_in(damaged, index, images):
    while index in damaged:
        index = (index + 1) % images
    return index


def _agree(root, name):
    """Let the index say of a shard what an enemy would: its new size and checksum."""
    content = (root / name).read_bytes()
    text = json.loads((root / "index.json").read_text())
    for shard in (shard for shards in text["splits"].values() for shard in shards if shard["name"] == name):
        shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (root / "index.json").write_text(json.dumps(text))
    (root / f"{name}.json").unlink(missing_ok=True)


@pytest.mark.parametrize("agrees", [False, True])
@pytest.mark.parametrize("same_length", [False, True])
@bounded(50)
@given(data=st.data())
def test_an_altered_shard_gives_the_right_images_or_is_refused(whole, copy, same_length, agrees, data):
    name = "test-000000.tar"
    content = (whole[1] / name).read_bytes()
    altered = data.draw(changes(same_length))(content)
    (copy / name).write_bytes(altered)
    shutil.copy(whole[1] / "index.json", copy)
    if agrees:
        _agree(copy, name)
    try:
        index = load_index(copy)
    except UserError as error:
        assert_plain(error)
    else:
        _check(copy, index, whole)
    faults = verify(copy)
    assert all(fault.isprintable() for fault in faults)
    assert faults or altered == content or agrees


def _read_untrusted_index(root, text, whole):
    (root / "index.json").write_bytes(text)
    try:
        index = load_index(root)
    except UserError as error:
        assert_plain(error)
        return
    assert isinstance(index, Index)
    for split in index.splits:
        for memory_bytes in (0, 2**20):
            try:
                _all(Stream(index, root, split, patch_size=4, seed=None, memory_bytes=memory_bytes))
            except UserError as error:
                assert_plain(error)
    verify(root)


@bounded(400)
@given(change=changes())
def test_an_altered_index_is_refused_or_fits_the_shards(whole, copy, change):
    _read_untrusted_index(copy, change((whole[1] / "index.json").read_bytes()), whole)


FIELDS = ["version", "splits", "train", "test", "records", "images", "offset", "bytes", "count", "key", "name", "a\nb"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**30) | st.just(-1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@bounded(150)
@given(value=JSON)
@example(value=10**5000)
def test_any_json_is_no_index(copy, whole, value):
    _read_untrusted_index(copy, _dumped(value), whole)


@bounded(300)
@given(data=st.data(), value=JSON)
def test_any_value_at_any_place_of_the_index(whole, copy, data, value):
    text = json.loads((whole[1] / "index.json").read_text())
    inner = text
    while True:
        places = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        place = data.draw(st.sampled_from(places))
        if not isinstance(inner[place], dict | list) or not inner[place] or data.draw(st.integers(0, 5)) == 0:
            break
        inner = inner[place]
    if isinstance(inner[place], int) and not isinstance(inner[place], bool) and data.draw(st.booleans()):
        value = inner[place] + data.draw(st.integers(-600, 600))  # close to the truth
    inner[place] = value
    _read_untrusted_index(copy, _dumped(text), whole)


def _dumped(value):
    if isinstance(value, int) and value > 10**4000:
        return b'{"version": 2, "classes": 1' + b"0" * 5000 + b"}"
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 10**6,
        b'{"splits":' * 10**5,
        b'{"version": 2, "splits": {"train": ' + b"[" * 10**5 + b"]" * 10**5 + b"}}",
        b'{"version": 2, "classes": 1e400}',
        b'{"version": NaN}',
        b'{"version": 2, "source": "\\ud800"}',
        b'{"version": 2, "' + b"\\u001b[31m" * 100 + b'": 1}',
        b"\xef\xbb\xbf{}",
    ],
    ids=["lists", "objects", "lists inside", "infinity", "nan", "surrogate", "control", "mark"],
)
def test_json_made_to_hurt_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "index.json").write_bytes(text)
    with pytest.raises(UserError) as caught:
        load_index(tmp_path)
    assert_plain(caught.value)
    assert len(str(caught.value)) < 2000


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _npy(descr, shape, size, content=b""):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    header += " " * (117 - len(header)) + "\n"
    made = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content
    return made + bytes(size - len(made))


@pytest.mark.parametrize("part", ["crc32", "images", "labels"])
def test_nothing_is_unpickled_and_nothing_is_allocated_on_the_word_of_a_file(whole, copy, tmp_path, part):
    witness = tmp_path / "witness"
    shard = whole[0].splits["test"][0]
    member = getattr(shard.records[1], part)
    for descr, shape, content in (
        ("|O", (1,), pickle.dumps(_Touch(witness))),
        ("|u1", (2**40, 2**20), b""),
        ("<i8", (10**30,), b""),
        ("<u4", (-50,), b""),
    ):
        tar = bytearray((whole[1] / shard.name).read_bytes())
        tar[member.offset : member.offset + member.bytes] = _npy(descr, shape, member.bytes, content)
        (copy / shard.name).write_bytes(tar)
        shutil.copy(whole[1] / "index.json", copy)
        _agree(copy, shard.name)
        for memory_bytes in (0, 2**31):
            with pytest.raises(UserError, match=f"record {shard.records[1].key}: "):
                Stream(load_index(copy), copy, "test", patch_size=4, seed=None, memory_bytes=memory_bytes)
        assert any(f"record {shard.records[1].key}: " in fault for fault in verify(copy))
    assert not witness.exists()
    pickle.loads(pickle.dumps(_Touch(witness)))
    assert witness.exists()  # the pickle would have worked


@pytest.mark.parametrize(
    ("name", "kind", "fault"),
    [
        ("../escape.npy", tarfile.REGTYPE, "the name of member ../escape.npy holds a path"),
        ("/etc/escape.npy", tarfile.REGTYPE, "holds a path"),
        ("below/escape.npy", tarfile.REGTYPE, "holds a path"),
        ("link.npy", tarfile.SYMTYPE, "member link.npy is no plain file"),
        ("link.npy", tarfile.LNKTYPE, "is no plain file"),
        ("device.npy", tarfile.CHRTYPE, "is no plain file"),
        ("device.npy", tarfile.BLKTYPE, "is no plain file"),
        ("pipe.npy", tarfile.FIFOTYPE, "is no plain file"),
        ("folder", tarfile.DIRTYPE, "is no plain file"),
        ("long.npy", tarfile.GNUTYPE_LONGNAME, "is no plain file"),
        ("extended.npy", tarfile.XHDTYPE, "is no plain file"),
        ("sparse.npy", tarfile.GNUTYPE_SPARSE, "is no plain file"),
        ("test-000000.labels.npy", tarfile.REGTYPE, "is there twice"),
        ("more.npy", tarfile.REGTYPE, "member more.npy is not as the index says"),
    ],
)
def test_members_made_to_hurt_are_found(whole, copy, name, kind, fault):
    shard = whole[0].splits["test"][0]
    end = shard.records[-1].labels.offset + -(-shard.records[-1].labels.bytes // 512) * 512
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, "/etc/passwd", 10
    header = member.tobuf(tarfile.USTAR_FORMAT)
    if kind != tarfile.REGTYPE:  # tobuf writes the size of plain files alone
        header = member.create_ustar_header(member.get_info() | {"size": 10}, "utf-8", "strict")
    tar = (whole[1] / shard.name).read_bytes()
    (copy / shard.name).write_bytes(tar[:end] + header + bytes(512) + tar[end:])
    _agree(copy, shard.name)
    faults = verify(copy)
    assert len(faults) == 1
    assert fault in faults[0]


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0", b"00000000000\0", b"garbage\0\0\0\0\0"]
)
def test_sizes_made_to_hurt_are_found(whole, copy, size):
    """Negative ones, in tar's binary notation, have sent readers around in circles."""
    shard = whole[0].splits["test"][0]
    tar = bytearray((whole[1] / shard.name).read_bytes())
    tar[124:136] = size
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    (copy / shard.name).write_bytes(tar)
    _agree(copy, shard.name)
    assert any("cannot be read as tar" in fault for fault in verify(copy))
