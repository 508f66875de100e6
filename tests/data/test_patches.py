import pytest
import torch

from data.patches import patchify, unpatchify


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "channels", "patch_size"), [(32, 3, 4), (32, 1, 4), (8, 3, 8), (6, 2, 1)])
def test_unpatchify_is_the_inverse(dtype, side, channels, patch_size):
    images_BHWC = torch.randint(0, 100, (3, side, side, channels)).to(dtype)
    x_BLD = patchify(images_BHWC, patch_size)
    assert x_BLD.shape == (3, (side // patch_size) ** 2, patch_size**2 * channels)
    assert x_BLD.dtype == dtype
    assert torch.equal(unpatchify(x_BLD, patch_size), images_BHWC)


def test_patches_run_by_row_and_their_values_by_row_column_channel():
    images_BHWC = torch.arange(2 * 6 * 6 * 3).view(2, 6, 6, 3)
    x_BLD = patchify(images_BHWC, 2)
    for patch in range(9):
        top, left = patch // 3 * 2, patch % 3 * 2
        expected = images_BHWC[1, top : top + 2, left : left + 2].flatten()
        assert torch.equal(x_BLD[1, patch], expected)


@pytest.mark.parametrize("shape", [(1, 8, 4, 1), (1, 6, 6, 1)])
def test_images_that_do_not_divide_are_refused(shape):
    with pytest.raises(ValueError, match="do not divide"):
        patchify(torch.zeros(shape), 4)


@pytest.mark.parametrize("shape", [(1, 3, 48), (1, 4, 47)])
def test_tokens_that_are_no_square_are_refused(shape):
    with pytest.raises(ValueError, match="no square"):
        unpatchify(torch.zeros(shape), 4)
