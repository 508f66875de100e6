"""Training images that are held out: recipes are chosen on them, and the test images stay for the end."""

import torch
from torch import Tensor

from data.errors import UserError
from data.randomness import permutation

HOLDOUT = "holdout"  # the split that they are, beside those of the shards
_SEED = 0  # never that of a run: all runs hold out the same images


def trained_images(images: int, holdout: int) -> int:
    """How many of the images of the training split are left to train on; UserError if none is."""
    if holdout >= images:
        raise UserError(f"data.holdout={holdout} leaves none of the {images:,} training images: hold out fewer")
    return images - holdout


def split_training(images: int, holdout: int) -> tuple[Tensor, Tensor]:
    """The indices 0 .. images - 1 of the training split in two, by the two numbers alone.

    (images - holdout,) int64 to train on, in file order, and (holdout,) int64 held out, in an order that mixes
    classes: the first of them are those of a smaller holdout. Raises UserError as `trained_images`.
    """
    trained_images(images, holdout)
    index_N = permutation(_SEED, HOLDOUT, torch.tensor([0]), images)[0]
    return index_N[holdout:].sort().values, index_N[:holdout]
