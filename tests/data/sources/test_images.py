import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from data.sources import images
from data.sources.images import (
    MAX_FILE_BYTES,
    SUFFIXES,
    DamagedImageError,
    decode,
    decode_with_alpha,
    has_more_frames,
    read_file,
    resize,
)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(height=6, width=6):
    """RGB with another colour at each place."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def png_header(width, height):
    """A PNG file of 45 bytes that promises an image and holds no pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b"")


# What is decoded.


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_value(format):
    assert np.array_equal(decode(encoded(Image.fromarray(picture()), format)), picture())


def test_webp_is_decoded():
    assert np.array_equal(decode(encoded(Image.fromarray(picture()), "WEBP", lossless=True)), picture())


@pytest.mark.parametrize("format", ["AVIF", "JPEG"])
def test_formats_with_loss_are_decoded_as_pil_does(format):
    content = encoded(Image.fromarray(picture(64, 64)), format)
    assert np.array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content))))


def test_every_suffix_of_a_format_that_is_read_is_known():
    Image.init()
    others = {".avifs", ".pfm"}  # films, and floating point
    known = {suffix for suffix, format in Image.EXTENSION.items() if format in images.FORMATS}
    assert known - others == SUFFIXES


@pytest.mark.parametrize("format", ["EPS", "ICO", "PCX"])
def test_other_formats_are_not_opened(format):
    with pytest.raises(DamagedImageError, match="no image in JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM, AVIF format"):
        decode(encoded(Image.fromarray(picture()), format))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_modes_without_colour_or_with_a_palette_become_rgb(mode):
    image = Image.fromarray(picture()).convert(mode)
    found = decode(encoded(image))
    assert found.shape == (6, 6, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_the_colours_of_print_and_video_become_rgb(mode, format):
    red = Image.new("RGB", (16, 16), (200, 30, 40)).convert(mode)
    found = decode(encoded(red, format)).astype(int)
    assert np.abs(found - (200, 30, 40)).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode):
    alpha_HW = np.array([[0, 255], [0, 255]], np.uint8)
    image = Image.new("RGB", (2, 2), (10, 10, 10))
    image.putalpha(Image.fromarray(alpha_HW))
    found = decode(encoded(image.convert(mode)))
    assert found[..., 0].tolist() == [[255, 10], [255, 10]]


def test_half_transparency_is_mixed_with_white():
    found = decode(encoded(Image.new("RGBA", (1, 1), (0, 100, 255, 128))))
    assert np.abs(found[0, 0].astype(int) - (127, 177, 255)).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_lies_on_white(format):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 90, 80, 70])
    image.putdata([0, 1])
    image = image.crop((0, 0, 2, 1)).resize((2, 2), Image.Resampling.NEAREST)
    found = decode(encoded(image, format, transparency=0))
    assert found.tolist() == [[[255] * 3, [90, 80, 70]]] * 2


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(format):
    value_HW = np.array([[0, 257], [32768, 65535]], np.uint16)
    found = decode(encoded(Image.fromarray(value_HW), format))
    assert found[..., 0].tolist() == [[0, 1], [128, 255]]
    assert np.array_equal(found[..., 0], found[..., 2])


def test_16_bits_of_the_other_byte_order_are_scaled():
    values = np.array([[0, 257], [32768, 65535]], ">u2")
    image = Image.frombytes("I;16B", (2, 2), values.tobytes())
    assert decode(encoded(image, "TIFF"))[..., 0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize("values", [np.full((2, 2), 70_000, np.int32), np.ones((2, 2), np.float32)])
def test_pixels_without_a_known_range_are_damage(values):
    with pytest.raises(DamagedImageError, match="pixels of"):
        decode(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("format", "height", "width"), [("PNG", 4, 7), ("PNG", 7, 4), ("WEBP", 4, 4)])
def test_the_orientation_of_the_camera_is_applied(format, height, width, orientation):
    """Against the definition: where row 0 and column 0 of the stored image are seen. The crop is that of upright."""
    upright = picture(height, width)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    top, left = (height - 4) // 2, (width - 4) // 2
    assert np.array_equal(decode(content), upright[top : top + 4, left : left + 4])


def test_exif_data_that_cannot_be_parsed_leaves_the_pixels():
    profile = PngInfo()
    profile.add_text("Raw profile type exif", "exif\n\n\nno number")
    content = encoded(Image.fromarray(picture()), pnginfo=profile)
    with pytest.raises(ValueError, match="hexadecimal"):
        Image.open(io.BytesIO(content)).getexif()
    assert np.array_equal(decode(content), picture())
    content = encoded(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert np.array_equal(decode(content), decode(encoded(Image.fromarray(picture()), "JPEG")))


@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_other_exif_data_may_be_odd():
    """A tag of another type than the standard says, which cannot be written again, beside the orientation."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x010F] = 3, "text", "m" * 100
    odd = exif.tobytes().replace(b"\x01\x0e\x00\x02", b"\x01\x0e\x00\x0b")  # a text that claims to be numbers
    assert odd != exif.tobytes()
    image = Image.fromarray(picture())
    content = encoded(image, "PNG", exif=odd)
    with pytest.raises(AttributeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(decode(content), picture()[::-1, ::-1])


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        content = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode(content)[0, 0].tolist() == [255, 0, 0], format
        assert has_more_frames(content), format
        assert not has_more_frames(encoded(frames[0], format)), format
    assert not has_more_frames(b"no image")


@pytest.mark.parametrize(("height", "width"), [(6, 9), (9, 6), (7, 6)])
def test_the_centre_square_is_cut_out(height, width):
    image = picture(height, width)
    top, left = (height - 6) // 2, (width - 6) // 2
    assert np.array_equal(decode(encoded(Image.fromarray(image))), image[top : top + 6, left : left + 6])


def test_a_crop_has_its_size():
    image = picture(218, 178)
    assert np.array_equal(decode(encoded(Image.fromarray(image)), 148), image[35:183, 15:163])
    with pytest.raises(DamagedImageError, match="too small: 178x218 pixels, the crop has 179x179"):
        decode(encoded(Image.fromarray(image)), 179)


# Large images: what is converted at once is some rows, and the rest is reduced.


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_an_image_is_never_converted_as_a_whole(monkeypatch, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(picture(300, 401)).convert(mode), "TIFF", exif=exif)
    expected = decode(content)
    converted, plain = [], Image.Image.convert

    def convert(image, *args, **options):
        converted.append(image.height)
        return plain(image, *args, **options)

    monkeypatch.setattr(Image.Image, "convert", convert)
    monkeypatch.setattr(images, "_STRIP", 7)
    assert np.array_equal(decode(content), expected)
    assert max(converted) == 7


@pytest.mark.parametrize("orientation", [1, 3, 8])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_what_is_larger_than_needed_is_reduced_to_the_same_picture(monkeypatch, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(picture(9, 9)).resize((452, 304), Image.Resampling.BICUBIC)
    content = encoded(smooth, format, exif=exif)
    whole = decode(content)
    monkeypatch.setattr(images, "_MAX_SIDE", 200)
    monkeypatch.setattr(images, "_STRIP", 50)
    reduced = decode(content)
    assert reduced.shape == (152, 152, 3)
    assert np.abs(resize(reduced, 32).astype(int) - resize(whole, 32)).max() <= 3
    colours, alpha = decode_with_alpha(content)
    assert np.array_equal(colours, reduced)
    assert (alpha == 255).all()
    assert decode(content, 251).shape == (126, 126, 3)


def test_formats_whose_decoders_take_more_memory_have_another_limit(monkeypatch):
    monkeypatch.setitem(images._MAX_PIXELS_OF, "WEBP", 35)
    decode(encoded(Image.fromarray(picture()), "PNG"))
    with pytest.raises(DamagedImageError, match="more than 35 pixels"):
        decode(encoded(Image.fromarray(picture()), "WEBP"))


# What is damaged.


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_truncated_file_is_damaged(format):
    content = encoded(Image.fromarray(picture(64, 64)), format)
    for share in (0.5, 0.9):
        with pytest.raises(DamagedImageError) as caught:
            decode(content[: int(share * len(content))])
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8"])
def test_no_image_is_damaged(content):
    with pytest.raises(DamagedImageError) as caught:
        decode(content)
    assert "0x" not in str(caught.value)  # an address would differ from run to run


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer .* `git lfs pull`"),
        (b"/annex/objects/SHA256E-s9--0.png\n", "a git-annex pointer .* `git annex get`"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page instead of the file"),
        (b"", "an empty file"),
    ],
)
def test_what_lies_in_the_place_of_an_image_is_named(content, reason):
    with pytest.raises(DamagedImageError, match=reason):
        decode(content)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (12_000, 12_000), (2**27 + 1, 1)])
def test_a_bomb_is_refused_by_its_header(monkeypatch, width, height):
    def load(image):
        raise AssertionError("the pixels of a bomb were touched")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DamagedImageError, match="more than 134,217,728 pixels"):
            decode(png_header(width, height))


def test_an_image_that_pil_only_warns_of_is_not_refused_for_its_size():
    """Between PIL's limit for a warning, 89 million pixels, and ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DamagedImageError, match="^(?!more than)"):  # it has no pixels
            decode(png_header(10_000, 10_000))


def test_a_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert read_file(tmp_path / "a") == b"content"


def test_files_that_cannot_be_read_are_damaged(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for name, reason in (
        ("large", "more than 268,435,456 bytes"),
        ("pipe", "no plain file"),
        ("circle", "symbolic links"),
        ("absent", "No such file"),
        (".", "no plain file"),
    ):
        with pytest.raises(DamagedImageError, match=reason):
            read_file(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_of_somebody_else_is_damaged(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").chmod(0)
    with pytest.raises(DamagedImageError, match="Permission denied"):
        read_file(tmp_path / "a")


@pytest.mark.parametrize(
    ("mode", "dtype", "scale"), [("L", np.uint8, 1), ("I;16", np.uint16, 257)], ids=["8 bits", "16 bits"]
)
def test_one_transparent_value_of_grey(mode, dtype, scale):
    grey = np.random.default_rng(0).integers(1, 256, (6, 6)).astype(dtype)
    grey[2, 3] = 0
    image_HWC, alpha_HW = decode_with_alpha(encoded(Image.fromarray(grey * dtype(scale)), transparency=0))
    assert np.array_equal(alpha_HW, np.where(grey == 0, 0, 255))
    assert np.array_equal(image_HWC[..., 0], grey)


def test_alpha_of_a_palette_and_none_at_all():
    rgba = np.dstack([np.full((6, 6, 3), 200), np.full((6, 6), 255)]).astype(np.uint8)
    rgba[0] = 0
    palette = Image.fromarray(rgba).quantize(4)
    image_HWC, alpha_HW = decode_with_alpha(encoded(palette))
    assert np.array_equal(alpha_HW, rgba[..., 3])
    assert np.array_equal(image_HWC[1:], rgba[1:, :, :3])
    assert (decode_with_alpha(encoded(Image.fromarray(picture())))[1] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1, "quality": 30}])
@pytest.mark.parametrize("size", [(64, 64), (97, 61), (61, 98)])
def test_plain_jpegs_are_decoded_as_pil_does(mode, options, size, monkeypatch):
    picture = (
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)).convert(mode).resize(size)
    )
    content = io.BytesIO()
    picture.save(content, "jpeg", **(options if mode == "RGB" else {}))
    fast = [images.decode(content.getvalue(), crop) for crop in (None, 40)]
    assert images._plain_jpeg(content.getvalue()) is not None
    monkeypatch.setattr(images, "_plain_jpeg", lambda content: None)
    for one, crop in zip(fast, (None, 40), strict=True):
        assert np.array_equal(one, images.decode(content.getvalue(), crop))


def test_a_jpeg_that_says_more_is_left_to_pil():
    picture, exif = Image.new("RGB", (20, 10)), Image.Exif()
    exif[274] = 6
    for save, is_plain in (({}, True), ({"exif": exif}, False), ({"xmp": b"<x:xmpmeta/>"}, False)):
        content = io.BytesIO()
        picture.save(content, "jpeg", **save)
        assert (images._plain_jpeg(content.getvalue()) is not None) == is_plain
    content = io.BytesIO()
    picture.convert("CMYK").save(content, "jpeg")
    assert images._plain_jpeg(content.getvalue()) is None


def test_a_plain_jpeg_that_was_cut_is_damaged():
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(content, "jpeg")
    with pytest.raises(DamagedImageError, match="truncated"):
        images.decode(content.getvalue()[:-200])
