"""One image file to RGB pixels. Files are untrusted: whatever they hold, the answer is pixels or DamagedImageError."""

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data.errors import printable

# Named one by one: PIL knows more, and one of them (EPS) would start another program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MAX_FILE_BYTES = 2**28
MAX_PIXELS = 2**27
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
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


def decode(content: bytes, crop: int | None = None) -> np.ndarray:
    """The centre square of an image: (side, side, 3) uint8 RGB.

    The EXIF orientation is applied, transparency lies on white, 16 bits are scaled to 8, and of several frames
    the first is taken.

    crop: side of the square, pixels; None: as large as fits. Raises DamagedImageError.
    """
    with _opened(content) as image:
        return np.asarray(_rgb(_centre(image, crop)))


def decode_with_alpha(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """As `decode`, but the colours as they are below the transparency, and alpha: (side, side) uint8, 255 opaque."""
    with _opened(content) as image:
        square = _centre(image, None)
        if not square.has_transparency_data:
            return np.asarray(_rgb(square)), np.full(square.size[::-1], 255, np.uint8)
        if square.mode.startswith("I"):  # 16 bits of grey, of which one value is transparent
            is_clear_HW = np.asarray(square) == square.info["transparency"]
            return np.asarray(_rgb(square)), np.where(is_clear_HW, 0, 255).astype(np.uint8)
        rgba_HWC = np.asarray(square.convert("RGBA"))
        return rgba_HWC[..., :3], rgba_HWC[..., 3]


def _centre(image: Image.Image, crop: int | None) -> Image.Image:
    """The centre square of an image, upright."""
    image.load()
    upright = _upright(image)
    width, height = upright.size
    side = crop or min(width, height)
    if min(width, height) < side:
        raise DamagedImageError(f"too small: {width}x{height} pixels, the crop has {side}x{side}")
    left, top = (width - side) // 2, (height - side) // 2
    return upright.crop((left, top, left + side, top + side))


def resize(image: np.ndarray, size: int, channels: int = 3) -> np.ndarray:
    """(size, size, channels) uint8, bilinear, from uint8 RGB (H, W, 3) or grey (H, W)."""
    picture = Image.fromarray(image).convert("L" if channels == 1 else "RGB")
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
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if width * height == 0:
                    raise DamagedImageError("no pixels")
                yield image
    except DamagedImageError:
        raise
    except Image.DecompressionBombError:
        raise DamagedImageError(f"more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:  # PIL's text names an address in memory
        raise DamagedImageError(f"no image in {', '.join(FORMATS)} format") from None
    except Exception as error:  # PIL's errors on damaged files are many
        raise DamagedImageError(printable(f"{error}") or type(error).__name__) from None


def _upright(image: Image.Image) -> Image.Image:
    """As the camera saw it. `ImageOps.exif_transpose` would also write all other tags anew, and fail on odd ones."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF data that cannot be parsed; the pixels could be
        return image
    return image.transpose(_TURN[orientation]) if orientation in _TURN else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB. ValueError for pixels without a known range."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        value_HW = np.asarray(image).astype(np.int64)
        if not 0 <= value_HW.min() <= value_HW.max() < 2**16:
            raise ValueError("pixels of more than 16 bits")
        image = Image.fromarray(np.rint(value_HW / 257).astype(np.uint8))  # 257 = 65535 / 255
    if image.mode == "F":
        raise ValueError("pixels of floating point")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
