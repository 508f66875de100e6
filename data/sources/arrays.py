"""Arrays that a person hands in, as images or as masks: what can be meant in one way is taken so, all else refused."""

import numpy as np
from numpy.typing import ArrayLike

from data.errors import UserError

# The usual orders of the axes, with images, height, width and channels; the first of them are what we write ourselves.
_ORDERS = ("NHWC", "NHW", "HWC", "HW", "NCHW", "CHW")


def as_images(array: ArrayLike, size: int, what: str) -> tuple[np.ndarray, str]:
    """Images (N, size, size, C) float32 in [0, 1], NaN for a missing pixel, C 1 or 3; and how the array was taken.

    array: uint8, 255 being white, or floating point in [0, 1] with NaN for what is missing; in the order (N, H, W, C)
    or (N, C, H, W), or without N for one image, or without C for grey ones.

    Raises UserError, which begins with `what`, for other shapes, dtypes and values, and for a shape that can be meant
    in two ways, as (3, H, W) can: three grey images, or one with its colours first.
    """
    images_NHWC, order = _arranged(array, size, (1, 3), what)
    dtype = images_NHWC.dtype
    if dtype == np.uint8:
        if images_NHWC.max() == 1:
            raise UserError(f"{what}: uint8 of 0 and 1, but 255 is white: multiply by 255, or give floating point")
        images_NHWC = images_NHWC / np.float32(255)
    elif np.issubdtype(dtype, np.floating):
        images_NHWC = images_NHWC.astype(np.float32)
        known = images_NHWC[~np.isnan(images_NHWC)]
        if known.size and not 0 <= known.min() <= known.max() <= 1:
            raise UserError(
                f"{what}: values from {known.min():.7g} to {known.max():.7g}: scale them to [0, 1], or clamp what "
                "leaves it by a little; NaN is a missing pixel"
            )
    else:
        raise UserError(f"{what}: {dtype}: give uint8, or floating point in [0, 1] with NaN for missing")
    white = 255 if dtype == np.uint8 else 1
    return images_NHWC, f"{_words(images_NHWC.shape)} ({', '.join(order)}) of {dtype}, {white} is white"


def as_mask(array: ArrayLike, size: int, what: str) -> np.ndarray:
    """Masks (N, size, size) bool, True where a pixel is known.

    array: bool, or numbers of which 0 is missing and 1 known, or whole numbers to 255, of which those nearer to 255
    are known; in the order (N, H, W), or (H, W) for one, or with an axis of one channel. Raises UserError.
    """
    mask_NHW = _arranged(array, size, (1,), what)[0][..., 0]
    if np.isin(mask_NHW, (0, 1)).all():
        return mask_NHW == 1
    if mask_NHW.dtype.kind in "iu" and 0 <= mask_NHW.min() <= mask_NHW.max() <= 255:
        return mask_NHW >= 128
    raise UserError(f"{what}: give bool, or 0 where nothing is known and 1 elsewhere, or whole numbers from 0 to 255")


def _arranged(array: ArrayLike, size: int, channels: tuple[int, ...], what: str) -> tuple[np.ndarray, str]:
    """The array as (N, H, W, C), and the order of the axes that it had."""
    try:
        array = np.asarray(array)
    except (TypeError, ValueError):  # lists of several lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{what}: give arrays of numbers of one shape each, stacked in one array")
    found = {}  # by the shape that an order leads to: one image of one channel is the same in several
    for order in _ORDERS:
        sizes = {"N": 1, "C": 1} | dict(zip(order, array.shape, strict=False))
        is_square = len(order) == array.ndim and sizes["H"] == sizes["W"] == size
        if is_square and sizes["C"] in channels and sizes["N"]:
            found.setdefault((sizes["N"], size, size, sizes["C"]), order)
    if not found:
        wanted = f"(N, {size}, {size}, {channels[-1]})" if len(channels) > 1 else f"(N, {size}, {size})"
        holds = " holds no images" if 0 in array.shape else ""
        raise UserError(f"{what}: shape {array.shape}{holds}, the model needs {wanted}: resize or reshape")
    if len(found) > 1:
        meant = " or ".join(_words(shape) for shape in found)
        clear = " or ".join(f"{(1, *array.shape) if 'C' in order else (*array.shape, 1)}" for order in found.values())
        raise UserError(f"{what}: shape {array.shape} can be {meant}: reshape it to {clear}")
    [(shape, order)] = found.items()
    return array.transpose([order.index(axis) for axis in "NHWC" if axis in order]).reshape(shape), order


def _words(shape_NHWC: tuple[int, ...]) -> str:
    images, *_, channels = shape_NHWC
    return f"{images:,} {'colour' if channels == 3 else 'grey'} image{'s' if images > 1 else ''}"
