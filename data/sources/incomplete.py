"""Images with missing parts out of a person's files: alpha 0 in an image file, NaN in an array, a mask beside them."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import UserError, printable
from data.sources.arrays import as_images, as_mask
from data.sources.images import SUFFIXES, DamagedImageError, decode_with_alpha, in_place, read_file, resize
from data.sources.walk import find_files

log = logging.getLogger(__name__)


def read_incomplete(paths: list[Path], image_size: int) -> tuple[list[str], np.ndarray]:
    """Names, and images (N, image_size, image_size, 3) float32 in [0, 1] with NaN where nothing is known.

    paths: image files, folders of them, and .npy arrays of the model's size, as `as_images` of arrays.py takes them.
    Image files are cut to their centre square and resized as the training images were; a pixel is known where its alpha
    is more than half, in its own colour, unmixed with what is transparent.

    The names are those of the files without suffix; the paths where two files are called alike.

    What cannot be read is left out, with a warning, and so is an array in a folder that is no image. The log says how
    an array was taken. UserError when nothing is left, or for an array of `paths` that is no image.
    """
    names, places, images, faults = [], [], [], []
    for path, is_named in _files(paths):
        is_array = path.suffix.lower() == ".npy"
        try:
            found = _read_array(path, image_size) if is_array else [decode_incomplete(read_file(path), image_size)]
        except DamagedImageError as error:
            faults.append(f"{printable(str(path))}: {error}")
        except UserError as error:
            if is_named:
                raise
            faults.append(printable(str(error), 2000))
        else:
            if np.isnan(found).any(-1).all():
                log.warning("%s: nothing of it is known", printable(str(path)))
            for row, image_HWC in enumerate(found):
                suffix = f"-{row}" if is_array else ""
                names.append(path.stem + suffix)
                places.append(f"{path}{suffix}")
                images.append(image_HWC)
            continue
        log.warning("%s: left out", faults[-1])
    if not images:
        raise UserError(f"none of the images can be read (first: {faults[0]}): give others with --images")
    return names if len(set(names)) == len(names) else places, np.stack(images)


def read_mask(path: Path, image_size: int) -> np.ndarray:
    """(image_size, image_size) bool, True where a pixel is known. UserError for what cannot be read.

    path: an image, of which is missing what is nearer to black than to white, or transparent as a hole that was cut
    out; or a .npy array as `data.sources.arrays.as_mask` takes it. A warning says when all is known, or nothing.
    """
    try:
        if path.suffix.lower() == ".npy":
            mask_NHW = as_mask(_load_array(path), image_size, str(path))
            if len(mask_NHW) > 1:
                raise UserError(f"{path} holds {len(mask_NHW)} masks: give one, which is for all images")
            known_HW = mask_NHW[0]
        else:
            known_HW, dark, clear = decode_mask(read_file(path), image_size)
            if dark and clear:
                log.warning(
                    "the mask %s: %s pixels are missing because they are transparent, and %s because they are dark",
                    printable(str(path)),
                    f"{clear:,}",
                    f"{dark:,}",
                )
    except DamagedImageError as error:
        raise UserError(f"the mask {path} cannot be read ({error}): give an image, black where nothing is") from None
    known = known_HW.sum()
    if known in (0, known_HW.size):
        how_many = f"all {known:,} pixels are" if known else f"none of the {known_HW.size:,} pixels is"
        log.warning("the mask %s: %s known; black or transparent is missing", printable(str(path)), how_many)
    return known_HW


def decode_mask(content: bytes, image_size: int) -> tuple[np.ndarray, int, int]:
    """The mask that an image file is, as in `read_mask`; pixels that are missing because dark, and because transparent.

    Raises DamagedImageError.
    """
    image_HWC, alpha_HW = decode_with_alpha(content)
    grey_HW = image_HWC.max(-1)
    if grey_HW.max() == 1:  # 0 and 1, as in arrays
        grey_HW = grey_HW * np.uint8(255)
    is_opaque_HW, is_light_HW = (resize(value_HW, image_size, 1)[..., 0] >= 128 for value_HW in (alpha_HW, grey_HW))
    return is_opaque_HW & is_light_HW, int((is_opaque_HW & ~is_light_HW).sum()), int((~is_opaque_HW).sum())


def _files(paths: list[Path]) -> list[tuple[Path, bool]]:
    """The files of the paths, and whether it is the file itself that was named, or its folder."""
    files = []
    for path in paths:
        try:
            is_folder = path.is_dir()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): give images or folders") from None
        if is_folder:
            found = [path / name for name in find_files(path).names]
            found = [(inner, False) for inner in found if inner.suffix.lower() in SUFFIXES | {".npy"}]
            if not found:
                raise UserError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))}, .npy): give another folder")
            files += found
        elif path.exists():
            files.append((path, True))
        else:
            raise UserError(f"{path} does not exist: give images or folders with --images")
    return files


def load_numbers(path: Path, name: str | None = None) -> np.ndarray:
    """The array of a .npy file; of an .npz file the one of this name. ValueError, in one line, for anything else."""
    try:
        with path.open("rb") as file:
            if other := in_place(file.read(64)):
                raise ValueError(other)
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
    images_NHWC, taken = as_images(_load_array(path), image_size, str(path))
    log.info("%s: taken as %s", printable(str(path)), taken)
    return np.broadcast_to(images_NHWC, (*images_NHWC.shape[:3], 3))


def _load_array(path: Path) -> np.ndarray:
    try:
        return load_numbers(path)
    except ValueError as error:
        raise DamagedImageError(f"no .npy array of numbers ({error})") from None


def decode_incomplete(content: bytes, image_size: int) -> np.ndarray:
    """An image file as (image_size, image_size, 3) float32, NaN where nothing is known; DamagedImageError."""
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
