"""One image file to RGB pixels. Files are untrusted: whatever they hold, the answer is pixels or DamagedImageError."""

import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from data.errors import printable

# Named one by one: PIL knows more, and one of them (EPS) would start another program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm"}
MAX_FILE_BYTES = 2**28
MAX_PIXELS = 2**27
_MAX_PIXELS_OF = {"WEBP": 2**26, "AVIF": 2**26}  # whose decoders take up to 16 bytes a pixel, others 4 to 8
_MAX_SIDE = 2**13  # of what is resized; shards hold at most half of it, so that the resizing still averages
_STRIP = 128  # rows that are converted at once
_ORIENTED = (b"Exif\0\0", b"http://ns.adobe.com/xap/")  # where a JPEG may say how the camera was held
# EXIF orientations: the stored axes that are mirrored, and whether they are exchanged after that.
_MIRRORED_X, _MIRRORED_Y, _EXCHANGED = {2, 3, 7, 8}, {3, 4, 6, 7}, {5, 6, 7, 8}
# What lies in the place of an image, by its first bytes.
_IN_PLACE = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file: fetch the files with `git lfs pull`",
    b"/annex/objects/": "a git-annex pointer instead of the file: fetch the files with `git annex get`",
    b"<!doctype html": "a web page instead of the file: fetch it again",
    b"<html": "a web page instead of the file: fetch it again",
    b"ii*\0": "TIFF of a kind that cannot be read: save it with 8 or 16 unsigned bits, black being 0",
    b"mm\0*": "TIFF of a kind that cannot be read: save it with 8 or 16 unsigned bits, black being 0",
}

_opening = threading.Lock()  # the filter of warnings belongs to the process


class DamagedImageError(Exception):
    """This image cannot be used: the reason in one line."""


def read_file(path: Path) -> bytes:
    """The content of an image file. DamagedImageError if it cannot be read or has over MAX_FILE_BYTES."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise DamagedImageError("no plain file")
        if status.st_size > MAX_FILE_BYTES:
            raise DamagedImageError(f"more than {MAX_FILE_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DamagedImageError(error.strerror) from None


def in_place(head: bytes) -> str | None:
    """What a file holds instead of what its name promises, and what to do; None if its first bytes do not tell."""
    if not head:
        return "an empty file"
    text = head[:64].lstrip().lower()
    return next((what for start, what in _IN_PLACE.items() if text.startswith(start)), None)


def decode(content: bytes, crop: int | None = None) -> np.ndarray:
    """The centre square of an image: (side, side, 3) uint8 RGB.

    The EXIF orientation is applied, transparency lies on white, more than 8 bits are scaled to 8, and of several
    frames the first is taken. A square of more than 8,192 pixels a side is halved. The largest images take 1 GiB of
    memory while they are decoded.

    crop: side of the square, pixels; None: as large as fits. Raises DamagedImageError.
    """
    plain_HWC = _plain_jpeg(content)
    if plain_HWC is not None and min(plain_HWC.shape[:2]) >= (crop or 1):
        height, width, _ = plain_HWC.shape
        side = crop or min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        return plain_HWC[top : top + side, left : left + side]
    with _opened(content) as image:
        return _square(image, crop, "RGB", _on_white)


def _plain_jpeg(content: bytes) -> np.ndarray | None:
    """The pixels of a JPEG that is colour or grey and says nothing else, (H, W, 3) uint8 RGB; None for any other file.

    PIL gives the same pixels in several times the time (128 pixels: 7 times), and judges what is damaged.
    """
    if not content.startswith(b"\xff\xd8\xff") or any(tag in content for tag in _ORIENTED):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in ("YCbCr", "Gray") or min(width, height) > _MAX_SIDE or width * height > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content)
    except ValueError:
        return None


def decode_with_alpha(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """As `decode`, but the colours as they are below the transparency, and alpha: (side, side) uint8, 255 opaque."""
    with _opened(content) as image:
        rgba_HWC = _square(image, None, "RGBA", lambda strip: strip.convert("RGBA"))
        return rgba_HWC[..., :3], rgba_HWC[..., 3]


def brightest(content: bytes) -> tuple[int, int]:
    """The largest value of an image, and which one is white: of 65,535 in 16-bit grey, else of 255 after `decode`."""
    with _opened(content) as image:
        if image.mode.startswith("I"):
            black, white = _grey_range(image)
            low, high = image.getextrema()
            return (high, white) if white else (black - low, black)
    return int(decode(content).max()), 255


def resize(image: np.ndarray, size: int, channels: int = 3) -> np.ndarray:
    """(size, size, channels) uint8, bilinear, from uint8 RGB (H, W, 3) or grey (H, W)."""
    if image.shape == (size, size, channels):
        return image
    picture, mode = Image.fromarray(image), "L" if channels == 1 else "RGB"
    if picture.mode != mode:  # to convert is to copy
        picture = picture.convert(mode)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, channels)


def has_more_frames(content: bytes) -> bool:
    """Whether an image has frames besides the first, which alone is used; False if it cannot be opened."""
    try:
        with _opened(content) as image:
            return getattr(image, "is_animated", False)
    except DamagedImageError:
        return False


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """The image, its header read and its size within bounds. Any error until it is closed is damage."""
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                limit = _MAX_PIXELS_OF.get(image.format, MAX_PIXELS)
                if width * height > limit:
                    raise DamagedImageError(f"more than {limit:,} pixels")
                if width * height == 0:
                    raise DamagedImageError("no pixels")
                yield image
    except DamagedImageError:
        raise
    except Image.DecompressionBombError:
        raise DamagedImageError(f"more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:  # PIL's text names an address in memory
        raise DamagedImageError(in_place(content) or f"no image in {', '.join(FORMATS)} format") from None
    except Exception as error:  # PIL's errors on damaged files are many
        raise DamagedImageError(printable(f"{error}") or type(error).__name__) from None


def _square(
    image: Image.Image, crop: int | None, mode: str, finish: Callable[[Image.Image], Image.Image]
) -> np.ndarray:
    """The centre square of an image, upright, (side, side, channels) uint8.

    Some rows after the other are cut out, converted, finished (to `mode`) and reduced, so that the whole image is
    never there twice.
    """
    if not crop and min(image.size) > _MAX_SIDE:
        image.draft(None, (image.width // 2, image.height // 2))  # a JPEG need not be decoded to more
    width, height = image.size
    side = crop or min(width, height)
    if min(width, height) < side:
        raise DamagedImageError(f"too small: {width}x{height} pixels, the crop has {side}x{side}")
    grey_range = _grey_range(image)
    _scale_transparency(image)
    image.load()
    orientation = _orientation(image)
    # Of an odd margin the smaller half is at the left and at the top of the upright image.
    left = (width - side + (orientation in _MIRRORED_X)) // 2
    top = (height - side + (orientation in _MIRRORED_Y)) // 2
    factor = -(-side // _MAX_SIDE)
    size = -(-side // factor)
    square_HWC = np.empty((size, size, len(mode)), np.uint8)
    for row in range(0, size, _STRIP):
        box = (left, top + row * factor, left + side, top + min((row + _STRIP) * factor, side))
        strip = finish(_coloured(image.crop(box), grey_range))
        square_HWC[row : row + _STRIP] = np.asarray(strip.reduce(factor) if factor > 1 else strip)
    if orientation in _MIRRORED_X:
        square_HWC = square_HWC[:, ::-1]
    if orientation in _MIRRORED_Y:
        square_HWC = square_HWC[::-1]
    return square_HWC.swapaxes(0, 1) if orientation in _EXCHANGED else square_HWC


def _orientation(image: Image.Image) -> int:
    """As the camera was held. `ImageOps.exif_transpose` would also write all other tags anew, and fail on odd ones."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data that cannot be parsed; the pixels could be
        return 1


def _grey_range(image: Image.Image) -> tuple[int, int]:
    """Which values are black and white where they are not 0 and 255. DamagedImageError for those that none can tell."""
    white = 65535
    if image.mode == "F":
        raise DamagedImageError("pixels of floating point: nothing says which value is white")
    if image.format == "TIFF":
        if 2 in image.tag_v2.get(ExifTags.Base.SampleFormat, ()):
            raise DamagedImageError("pixels of signed numbers: nothing says which value is white")
        if image.mode == "I":
            raise DamagedImageError("pixels of 32 bits: nothing says which value is white")
        white = 2 ** image.tag_v2.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
        if image.mode.startswith("I") and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
            return white, 0  # WhiteIsZero, which PIL applies to 8 bits alone
    return 0, white


def _scale_transparency(image: Image.Image) -> None:
    """Of a PNG, PIL scales the pixels to 8 bits, but not the colour that is transparent."""
    clear = image.info.get("transparency")
    if image.format != "PNG" or clear is None:
        return
    bits = image.tile[0].args
    if bits in ("L;2", "L;4"):
        image.info["transparency"] = clear * (85 if bits == "L;2" else 17)
    elif bits == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _coloured(strip: Image.Image, grey_range: tuple[int, int]) -> Image.Image:
    """Any mode to RGB, or to RGBA where something may be transparent."""
    if strip.mode.startswith("I"):
        black, white = grey_range
        value_HW = np.asarray(strip).astype(np.int32)
        grey = Image.fromarray(np.rint((value_HW - black) * (255 / (white - black))).astype(np.uint8))
        if "transparency" in strip.info:
            grey.putalpha(Image.fromarray(value_HW != strip.info["transparency"]))
        strip = grey
    if strip.mode == "La":  # of which PIL knows no other way
        strip = strip.convert("LA")
    return strip.convert("RGBA" if strip.has_transparency_data else "RGB")


def _on_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "RGBA":
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB")
    return strip
