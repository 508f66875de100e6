"""Images with missing parts out of a person's files: alpha 0 in an image file, NaN in an array, a mask beside them."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import UserError, printable
from data.images import SUFFIXES, DamagedImageError, decode, decode_with_alpha, read_file, resize

log = logging.getLogger(__name__)


def read_incomplete(paths: list[Path], image_size: int) -> tuple[list[str], np.ndarray]:
    """Names, and images (N, image_size, image_size, 3) float32 in [0, 1] with NaN where nothing is known.

    paths: image files, folders of them, and .npy arrays (N, H, W, 3), (N, H, W) or (H, W, 3) of the model's size,
    uint8 or floating point with NaN. Image files are cut to their centre square and resized as the training images
    were; a pixel is known where its alpha is more than half, in its own colour, unmixed with what is transparent.

    The names are those of the files without suffix; the paths where two files are called alike.

    What cannot be read is left out, with a warning; UserError when nothing is left, or for an array of another shape.
    """
    names, places, images, faults = [], [], [], []
    for path in _files(paths):
        is_array = path.suffix.lower() == ".npy"
        try:
            found = _read_array(path, image_size) if is_array else [_read_image(read_file(path), image_size)]
        except DamagedImageError as error:
            faults.append(f"{printable(str(path))}: {error}")
            log.warning("%s: left out", faults[-1])
            continue
        for row, image_HWC in enumerate(found):
            suffix = f"-{row}" if is_array else ""
            names.append(path.stem + suffix)
            places.append(f"{path}{suffix}")
            images.append(image_HWC)
    if not images:
        raise UserError(f"none of the images can be read (first: {faults[0]}): give others with --images")
    return names if len(set(names)) == len(names) else places, np.stack(images)


def read_mask(path: Path, image_size: int) -> np.ndarray:
    """(image_size, image_size) bool, True where the mask is nearer to white than to black."""
    try:
        mask_HWC = decode(read_file(path))
    except DamagedImageError as error:
        raise UserError(f"the mask {path} cannot be read ({error}): give an image, black where nothing is") from None
    return resize(mask_HWC, image_size).max(-1) >= 128


def _files(paths: list[Path]) -> list[Path]:
    files = []
    for path in paths:
        try:
            is_folder = path.is_dir()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): give images or folders") from None
        if is_folder:
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES | {".npy"} and p.is_file())
            if not found:
                raise UserError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))}, .npy): give another folder")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist: give images or folders with --images")
    return files


def load_numbers(path: Path, name: str | None = None) -> np.ndarray:
    """The array of a .npy file; of an .npz file the one of this name. ValueError, in one line, for anything else."""
    try:
        loaded = np.load(path, allow_pickle=False)  # a pickle could execute anything
        if isinstance(loaded, np.ndarray):
            return loaded
        if name is None:
            raise ValueError("it holds several arrays")
        with loaded:
            return loaded[name]
    except Exception as error:  # those of numpy and zipfile on damaged files are many
        raise ValueError(printable(str(error)) or type(error).__name__) from None


def _read_array(path: Path, image_size: int) -> np.ndarray:
    try:
        array = load_numbers(path)
    except ValueError as error:
        raise DamagedImageError(f"no .npy array of numbers ({error})") from None
    if array.ndim == 3 and array.shape[-1] == 3 and array.shape[0] == image_size:
        array = array[None]
    if array.ndim == 3:
        array = array[..., None]
    size = (image_size, image_size)
    if array.ndim != 4 or array.shape[1:3] != size or array.shape[3] not in (1, 3) or not len(array):
        wanted = f"(N, {image_size}, {image_size}, 3)"
        raise UserError(f"{path} has the shape {array.shape}, the model needs {wanted}: resize or reshape it")
    if array.dtype == np.uint8:
        array = array / np.float32(255)
    elif not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{path} holds {array.dtype}: give uint8, or floating point in [0, 1] with NaN for missing")
    return np.broadcast_to(array.astype(np.float32), (*array.shape[:3], 3))


def _read_image(content: bytes, image_size: int) -> np.ndarray:
    """(image_size, image_size, 3) float32, NaN where nothing is known."""
    image_HWC, alpha_HW = decode_with_alpha(content)
    if (alpha_HW == 255).all():
        return resize(image_HWC, image_size).astype(np.float32) / 255

    def smaller(value_HW: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(value_HW.astype(np.float32))  # mode F: no rounding
        return np.asarray(picture.resize((image_size, image_size), Image.Resampling.BILINEAR))

    weight_HW = alpha_HW / 255
    known_HW = smaller(weight_HW)
    colours = [smaller(image_HWC[..., c] / 255 * weight_HW) for c in range(3)]
    with np.errstate(divide="ignore", invalid="ignore"):
        colour_HWC = np.stack(colours, -1) / known_HW[..., None]
    return np.where(known_HW[..., None] >= 0.5, colour_HWC.clip(0, 1), np.nan).astype(np.float32)
