"""Training images that are held out: recipes are chosen on them, and the test images stay for the end."""

from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import UserError
from data.order.parts import AllBut, Listed
from data.randomness import keyed_permutation, permutation

HOLDOUT = "holdout"  # the split that they are, beside those of the shards
_SEED = 0  # never that of a run: all runs hold out the same images


def trained_images(images: int, holdout: int) -> int:
    """How many of the images of the training split are left to train on; UserError if none is."""
    if holdout >= images:
        raise UserError(f"data.holdout={holdout} leaves none of the {images:,} training images: hold out fewer")
    return images - holdout


def split_training(images: int, holdout: int, draw: Callable[[int, int], Tensor]) -> tuple[AllBut, Listed]:
    """The images of the training split in two: those to train on, in file order, and those held out.

    draw: which ones are held out, of (images, holdout). Raises UserError as `trained_images`.
    """
    trained_images(images, holdout)
    held_out = Listed(draw(images, holdout))
    return AllBut(images, held_out), held_out


def draw_any(images: int, holdout: int) -> Tensor:
    """(holdout,) int64, by the two numbers alone, in an order that mixes classes; time and memory grow with `images`.

    The first of them are those of a smaller holdout.
    """
    return permutation(_SEED, HOLDOUT, torch.tensor([0]), images)[0][:holdout]


def draw_few(images: int, holdout: int) -> Tensor:
    """As `draw_any`, in other numbers, for a split of any size: only those held out cost time and memory."""
    place_N = torch.arange(holdout)
    return keyed_permutation(_SEED, HOLDOUT, torch.zeros_like(place_N), place_N, torch.full_like(place_N, images))
