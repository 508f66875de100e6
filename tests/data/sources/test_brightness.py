"""Which value of a file is white, and which one is transparent."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.prepare import prepare
from data.sources.images import DamagedImageError, brightest, decode, decode_with_alpha

PHOTOMETRIC, EXTRA_SAMPLES, SAMPLE_FORMAT = 262, 338, 339
VALUES = np.array([[0, 257], [32768, 65535]], np.uint16)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(bits, colour, row, transparent=()):
    """A PNG of two equal rows of two pixels, perhaps of a transparent colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, bits, colour, 0, 0, 0))
    clear = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    pixels = chunk(b"IDAT", zlib.compress(2 * (b"\0" + row)))
    return b"\x89PNG\r\n\x1a\n" + header + clear * bool(transparent) + pixels + chunk(b"IEND", b"")


def tiff_of_12_bits(values):
    """A TIFF of one row of grey, two values in three bytes."""
    pairs = zip(values[::2], values[1::2], strict=True)
    content = b"".join((first << 12 | second).to_bytes(3, "big") for first, second in pairs)
    tags = {256: len(values), 257: 1, 258: 12, 259: 1, PHOTOMETRIC: 1, 273: 0, 277: 1, 278: 1, 279: len(content)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + content


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_of_16_bits_in_which_0_is_white(compression):
    content = encoded(Image.fromarray(VALUES), "TIFF", compression=compression, tiffinfo={PHOTOMETRIC: 0})
    assert decode(content)[..., 0].tolist() == [[255, 254], [127, 0]]
    assert brightest(content) == (65535, 65535)


def test_of_12_bits_4095_is_white():
    content = tiff_of_12_bits([0, 2048, 4095, 4095])
    assert decode(content, 1)[0, 0].tolist() == [128] * 3
    assert brightest(content) == (4095, 4095)


@pytest.mark.parametrize(
    ("written", "signed", "what"),
    [
        (np.int32, True, "signed numbers"),
        (np.int32, False, "32 bits"),
        (np.uint16, True, "signed numbers"),
        (np.uint8, True, "signed numbers"),
        (np.float32, False, "floating point"),
    ],
)
def test_what_no_one_can_know_is_damage(written, signed, what):
    content = encoded(Image.fromarray(np.full((2, 2), 200, written)), "TIFF", tiffinfo={SAMPLE_FORMAT: 2})
    if not signed:
        content = content.replace(*(struct.pack("<HHIH", SAMPLE_FORMAT, 3, 1, kind) for kind in (2, 1)))
    for read in (decode, decode_with_alpha):
        with pytest.raises(DamagedImageError, match=f"pixels of {what}: nothing says which value is white"):
            read(content)


def test_a_tiff_that_cannot_be_read_is_called_one():
    content = encoded(Image.fromarray(VALUES), "TIFF").replace(b"II*\0", b"MM\0*")
    with pytest.raises(DamagedImageError, match="TIFF of a kind that cannot be read"):
        decode(content)


@pytest.mark.parametrize(
    ("content", "second"),
    [
        (png(16, 0, struct.pack(">2H", 300, 40000), [300]), [156] * 3),
        (png(8, 0, bytes([5, 90]), [5]), [90] * 3),
        (png(4, 0, bytes([0x5A]), [5]), [170] * 3),
        (png(2, 0, bytes([0b01100000]), [1]), [170] * 3),
        (png(1, 0, bytes([0b01000000]), [0]), [255] * 3),
        (png(8, 2, bytes([1, 2, 3, 200, 2, 3]), [1, 2, 3]), [200, 2, 3]),
        (png(16, 2, struct.pack(">6H", 300, 512, 768, 40000, 0, 0), [300, 512, 768]), [156, 0, 0]),
    ],
    ids=["16", "8", "4", "2", "1", "RGB", "RGB 16"],
)
def test_a_transparent_colour_of_any_depth_lies_on_white(content, second):
    assert decode(content).tolist() == [[[255] * 3, second]] * 2
    assert decode_with_alpha(content)[1].tolist() == [[0, 255]] * 2


def test_grey_with_alpha_of_16_bits_and_premultiplied():
    row = struct.pack(">4H", 256, 65535, 40000, 0)
    content = png(16, 4, row)
    assert decode(content)[0].tolist() == [[1] * 3, [255] * 3]
    plain, premultiplied = (struct.pack("<HHIH", EXTRA_SAMPLES, 3, 1, kind) for kind in (2, 1))
    content = encoded(Image.new("LA", (2, 2), (50, 100)), "TIFF").replace(plain, premultiplied)
    assert Image.open(io.BytesIO(content)).mode == "La"
    assert decode(content)[0, 0].tolist() == [255 - 100 + 50] * 3


# A set that is dark as a whole.


def fill(folder, *images):
    for split, (number, image) in itertools.product(("train", "test"), enumerate(images)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        image.save(folder / split / f"{number:03d}.png")
    return folder


def grey(white, dtype=np.uint16):
    return Image.fromarray(np.linspace(0, white, 64).astype(dtype).reshape(8, 8))


LAYOUT = {"image_size": 8, "record_images": 2, "shard_records": 1, "progress": False}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([grey(4095)] * 10, "the brightest value of 20 images is 4,095 of 65,535"),
        ([grey(20, np.uint8)] * 9 + [grey(2000)], "the brightest value of 20 images is 20 of 255"),
        ([Image.new("L", (8, 8))], "the brightest value of 2 images is 0 of 255"),
        ([grey(4095), grey(65535)], None),
        ([Image.new("RGB", (8, 8), (0, 90, 0))], None),
    ],
    ids=["12 bits", "classes", "black", "one bright", "bright"],
)
def test_a_warning_says_that_a_set_is_dark(tmp_path, caplog, images, said):
    prepare("folder", tmp_path / "out", source_dir=fill(tmp_path / "in", *images), **LAYOUT)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned.pop(0).startswith("one class")
    assert len(warned) == bool(said)
    assert not said or warned[0].startswith(said)


def test_it_is_said_of_all_images_by_several_processes_and_after_an_interruption(tmp_path, caplog):
    folder = fill(tmp_path / "in", *[grey(4095)] * 4)
    (folder / "train/000.png").write_text("no image")
    with pytest.raises(UserError, match="damaged images: 1"):
        prepare("folder", tmp_path / "out", source_dir=folder, max_damaged=0, **LAYOUT)
    assert list((tmp_path / "out").glob("*.tar"))
    for workers in (2, 1):  # the second finds all of them there
        caplog.clear()
        prepare("folder", tmp_path / "out", source_dir=folder, workers=workers, **LAYOUT)
        assert caplog.text.count("the brightest value of 7 images is 4,095 of 65,535") == 1
