"""Square images to sequences of patches and back: pure reshapes, for any dtype."""

import math

from torch import Tensor


def patchify(images_BHWC: Tensor, patch_size: int) -> Tensor:
    """(B, H, W, C) to (B, L, D), L = (H / patch_size)^2, D = patch_size^2 * C.

    Patches run row by row; within a patch the order is row, column, channel.
    """
    batch, height, width, channels = images_BHWC.shape
    if height != width or height % patch_size:
        raise ValueError(f"{height}x{width} images do not divide into square patches of {patch_size} pixels")
    side = height // patch_size
    grid = images_BHWC.reshape(batch, side, patch_size, side, patch_size, channels).transpose(2, 3)
    return grid.reshape(batch, side * side, patch_size * patch_size * channels)


def unpatchify(x_BLD: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify`: (B, L, D) to (B, H, W, C), H = W = sqrt(L) * patch_size."""
    batch, patches, dim = x_BLD.shape
    side, channels = math.isqrt(patches), dim // patch_size**2
    if side * side != patches or channels * patch_size**2 != dim:
        raise ValueError(f"{patches} tokens of width {dim} are no square of {patch_size}-pixel patches")
    grid = x_BLD.reshape(batch, side, side, patch_size, patch_size, channels).transpose(2, 3)
    return grid.reshape(batch, side * patch_size, side * patch_size, channels)
