"""Arrays that a person hands in: how they are taken, and what is refused."""

import numpy as np
import pytest

from data.errors import UserError
from data.sources.arrays import as_images, as_mask

SIDE = 8
COLOUR = np.random.default_rng(0).random((2, SIDE, SIDE, 3)).astype(np.float32)
GREY = COLOUR[..., :1]


@pytest.mark.parametrize(
    ("array", "images_NHWC", "taken"),
    [
        (COLOUR, COLOUR, "2 colour images (N, H, W, C) of float32, 1 is white"),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR, "2 colour images (N, C, H, W)"),
        (COLOUR[0], COLOUR[:1], "1 colour image (H, W, C)"),
        (COLOUR[:1].transpose(0, 3, 1, 2), COLOUR[:1], "1 colour image (N, C, H, W)"),
        (GREY, GREY, "2 grey images (N, H, W, C)"),
        (GREY[..., 0], GREY, "2 grey images (N, H, W)"),
        (GREY[0, ..., 0], GREY[:1], "1 grey image (H, W)"),
        (GREY[:1, ..., 0], GREY[:1], "1 grey image (N, H, W)"),
        (GREY[0], GREY[:1], "1 grey image (H, W, C)"),
        (COLOUR[:, ::-1], COLOUR[:, ::-1], "2 colour images"),
        (COLOUR.astype(np.float64), COLOUR, "of float64, 1 is white"),
        ((COLOUR * 255).astype(np.uint8), np.floor(COLOUR * 255) / 255, "of uint8, 255 is white"),
        (GREY[0, ..., 0].tolist(), GREY[:1], "1 grey image"),
    ],
)
def test_what_has_one_meaning_is_taken_so(array, images_NHWC, taken):
    found_NHWC, words = as_images(array, SIDE, "a.npy")
    assert found_NHWC.dtype == np.float32
    np.testing.assert_allclose(found_NHWC, images_NHWC, rtol=1e-6)
    assert taken in words


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (np.zeros((3, 8, 8)), r"3 grey images or 1 colour image: reshape it to \(3, 8, 8, 1\) or \(1, 3, 8, 8\)"),
        (np.ones((2, 8, 8, 3), np.uint8), "multiply by 255"),
        (np.zeros((2, 8, 8, 4)), "resize or reshape"),
        (np.zeros((2, 4, 8, 8)), "resize or reshape"),
        (np.zeros((8, 8, 4)), "resize or reshape"),
        (np.zeros(8), "resize or reshape"),
        (np.zeros((0, 8, 8, 3)), "holds no images, .*resize or reshape"),
        (np.zeros((2, 8, 8), bool), "bool: give uint8"),
        (np.zeros((2, 8, 8), np.uint16), "uint16: give uint8"),
        (np.full((2, 8, 8), -0.5), r"scale them to \[0, 1\]"),
        ([[1], [1, 2]], "arrays of numbers"),
    ],
)
def test_what_has_two_meanings_or_none_is_refused(array, cause):
    with pytest.raises(UserError, match=f"^a.npy: .*{cause}"):
        as_images(array, SIDE, "a.npy")


def test_both_ways_to_reshape_it_are_taken():
    array = np.random.default_rng(0).random((3, SIDE, SIDE)).astype(np.float32)
    assert np.array_equal(as_images(array.reshape(3, 8, 8, 1), SIDE, "")[0][..., 0], array)
    assert np.array_equal(as_images(array.reshape(1, 3, 8, 8), SIDE, "")[0][0].transpose(2, 0, 1), array)


KNOWN = np.random.default_rng(0).random((3, SIDE, SIDE)) < 0.5


@pytest.mark.parametrize(
    ("mask", "known_NHW"),
    [
        (KNOWN, KNOWN),
        (KNOWN[0], KNOWN[:1]),
        (KNOWN[..., None], KNOWN),
        (KNOWN[:, None], KNOWN),
        (KNOWN.astype(int), KNOWN),
        (KNOWN.astype(np.uint8), KNOWN),
        (KNOWN.astype(float), KNOWN),
        (KNOWN * 255, KNOWN),
        (np.where(KNOWN, 128, 127).astype(np.uint8), KNOWN),
        (np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8), bool)),
    ],
)
def test_masks_in_every_usual_form(mask, known_NHW):
    assert np.array_equal(as_mask(mask, SIDE, "the mask"), known_NHW)


@pytest.mark.parametrize(
    ("mask", "cause"),
    [
        (np.full((8, 8), 0.5), "give bool, or 0"),
        (np.full((8, 8), 255.0), "give bool, or 0"),
        (np.full((8, 8), np.nan), "give bool, or 0"),
        (np.full((8, 8), -1), "give bool, or 0"),
        (np.full((8, 8), 65535, np.uint16), "give bool, or 0"),
        (np.ones((8, 8, 3)), r"needs \(N, 8, 8\)"),
        (np.ones((4, 8)), r"needs \(N, 8, 8\)"),
        (np.array("text"), "arrays of numbers"),
    ],
)
def test_what_is_no_mask_is_refused(mask, cause):
    with pytest.raises(UserError, match=cause):
        as_mask(mask, SIDE, "the mask")
