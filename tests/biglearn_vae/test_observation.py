"""What counts as known of an image."""

import warnings

import numpy as np
import pytest
import torch

from biglearn_vae.observation import observe, pixels_of
from data.errors import UserError

SIZES = {"image_size": 8, "patch_size": 4}


def images(count=2):
    return torch.rand(count, 8, 8, 3, generator=torch.Generator().manual_seed(0))


def test_nan_and_mask_make_patches_missing_and_keep_the_known_pixels():
    x = images()
    x[0, :4, 4:] = torch.nan  # the second patch, whole
    x[0, 7, 0, 1] = torch.nan  # one channel of one pixel of the third
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[1, 4:, 4:] = False  # the fourth patch of the other image
    given = observe(x, mask, **SIZES)
    assert given.observed_BL.tolist() == [[True, False, False, True], [True, True, True, False]]
    assert given.dropped_pixels == 15
    assert torch.equal(given.images_BHWC[given.seen_BHW], x[given.seen_BHW])
    assert given.seen_BHW[0, 4:, :4].sum() == 15
    assert not given.images_BHWC[~given.seen_BHW].any()


def test_any_takes_every_patch_with_a_known_pixel():
    x = images(1)
    x[0, 1:] = torch.nan
    given = observe(x, observed="any", **SIZES)
    assert given.observed_BL.tolist() == [[True, True, False, False]]
    assert given.dropped_pixels == 0
    assert torch.equal(given.images_BHWC[0, 0], x[0, 0])
    assert not given.images_BHWC[0, 1:].any()


def test_forms_of_the_same_images_give_the_same():
    grey = (images()[..., 0] * 255).byte()
    expected = observe(grey.float() / 255, **SIZES).images_BHWC
    colour = grey[..., None].expand(-1, -1, -1, 3)
    for form in (grey, grey.numpy(), grey[..., None], colour, colour.permute(0, 3, 1, 2), (grey / 255.0).double()):
        torch.testing.assert_close(observe(form, **SIZES).images_BHWC, expected)
    for form in (grey[0], colour[0], grey[0].numpy()):
        torch.testing.assert_close(observe(form, **SIZES).images_BHWC, expected[:1])
    torch.testing.assert_close(observe((grey / 255.0).bfloat16(), **SIZES).images_BHWC, expected, atol=4e-3, rtol=0)


def test_one_mask_is_for_all_images_and_many_for_one_each():
    known_BHW = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    for mask in (known_BHW, known_BHW.numpy(), known_BHW.float(), known_BHW.byte() * 255, known_BHW[:, None]):
        assert torch.equal(observe(images(), mask, **SIZES).seen_BHW, known_BHW)
    for mask in (known_BHW[0], known_BHW[:1], known_BHW[0].numpy().astype(int)):
        assert torch.equal(observe(images(), mask, **SIZES).seen_BHW, known_BHW[:1].expand(2, -1, -1))


@pytest.mark.parametrize(
    ("x", "cause"),
    [
        (np.zeros((2, 9, 8, 3), np.float32), "resize or reshape"),
        (np.zeros((2, 8, 8, 4), np.float32), "resize or reshape"),
        (np.zeros((2, 8, 8, 3), np.int64), "int64"),
        (np.zeros((3, 8, 8), np.float32), "3 grey images or 1 colour image"),
        (np.full((2, 8, 8, 3), 7.0), r"scale them to \[0, 1\]"),
        (np.full((2, 8, 8, 3), np.inf), r"scale them to \[0, 1\]"),
    ],
)
def test_what_is_no_image_is_refused(x, cause):
    with pytest.raises(UserError, match=cause):
        observe(x, **SIZES)


def test_a_mask_of_another_form_is_refused():
    with pytest.raises(UserError, match="the mask: give bool"):
        observe(images(), np.full((2, 8, 8), 0.5), **SIZES)
    with pytest.raises(UserError, match="the mask: shape"):
        observe(images(), np.ones((2, 4, 8), bool), **SIZES)
    with pytest.raises(UserError, match="3 masks for 2 images"):
        observe(images(), np.ones((3, 8, 8), bool), **SIZES)
    with pytest.raises(UserError, match="'all' or 'any'"):
        observe(images(), observed="some", **SIZES)


def test_merge_and_hide():
    x = images(1)
    top, left = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    top[:, :4], left[:, :, :4] = True, True
    one, other = observe(x, top, **SIZES), observe(1 - x, left, **SIZES)
    both = one.merge(other)
    assert both.observed_BL.tolist() == [[True, True, True, False]]
    assert torch.equal(both.images_BHWC[:, :4], x[:, :4])  # the first one's, where both are known
    assert torch.equal(both.images_BHWC[:, 4:, :4], (1 - x)[:, 4:, :4])
    without = both.hide(torch.tensor([[True, False, False, False]]))
    assert without.observed_BL.tolist() == [[False, True, True, False]]
    assert not without.seen_BHW[:, :4, :4].any()
    assert not without.images_BHWC[:, :4, :4].any()
    assert torch.equal(pixels_of(without.observed_BL, 8), without.seen_BHW)
    with pytest.raises(UserError, match="as many of both"):
        one.merge(observe(images(2), **SIZES))


def test_what_is_dropped_follows_what_is_hidden_chosen_and_merged():
    x = images(2)
    x[:, :2] = torch.nan  # half of the two upper patches of each image
    given = observe(x, **SIZES)
    assert given.dropped_pixels == 2 * 16
    assert given[:1].dropped_pixels == 16
    assert given.hide(torch.tensor([[True, False, False, False]] * 2)).dropped_pixels == 2 * 8
    lower = images(2)
    lower[:, 2:] = torch.nan
    both = given.merge(observe(lower, **SIZES))
    assert both.observed_BL.all()  # each knows a half of the upper patches
    assert both.dropped_pixels == 0
    torch.testing.assert_close(both.images_BHWC, images(2))


def test_arrays_of_any_memory_and_no_arrays():
    x = images().numpy()
    x.setflags(write=False)
    mask = np.broadcast_to(np.ones((8, 8), bool), (2, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert observe(x, mask, **SIZES).observed_BL.all()
    assert not observe(images().requires_grad_(), **SIZES).images_BHWC.requires_grad
    for wrong in (None, "a.png", [[1], [1, 2]]):
        with pytest.raises(UserError, match="arrays of numbers"):
            observe(wrong, **SIZES)
