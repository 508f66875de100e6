"""Training images mirrored and cut out: what is shown is a pure function of an image and of (seed, position)."""

import pytest
import torch
from pydantic import ValidationError

from biglearn_vae.images import open_index, open_stream
from data.patches import patchify, unpatchify
from data.read.config import DataConfig
from data.read.views import Views

SIZE, PATCH = 16, 4


def ramps(count):
    """Images whose two channels are the coordinates of the pixels' centres, 0 to 1, as tokens."""
    centre_N = (torch.arange(SIZE) + 0.5) / SIZE
    image_HWC = torch.stack(torch.meshgrid(centre_N, centre_N, indexing="ij"), dim=-1)
    return patchify(image_HWC.expand(count, -1, -1, -1), PATCH)


def shown(views, count=400, first=0):
    return unpatchify(views(ramps(count), torch.arange(first, first + count)), PATCH)


def test_what_is_shown_does_not_depend_on_the_batch():
    views = Views(seed=3, patch_size=PATCH, flip=True, crop=0.5)
    whole_BHWC, part_BHWC = shown(views), shown(views, count=7, first=100)
    assert torch.equal(whole_BHWC[100:107], part_BHWC)
    assert not torch.equal(whole_BHWC[0], whole_BHWC[1])
    assert not torch.equal(shown(Views(4, PATCH, True, 0.5)), whole_BHWC)


def test_half_of_the_images_are_mirrored():
    found_BHWC, plain_BHWC = shown(Views(0, PATCH, flip=True, crop=1.0)), unpatchify(ramps(400), PATCH)
    is_mirrored_B = (found_BHWC == plain_BHWC.flip(2)).flatten(1).all(1)
    is_plain_B = (found_BHWC == plain_BHWC).flatten(1).all(1)
    assert torch.equal(is_mirrored_B, ~is_plain_B)
    assert 160 < is_mirrored_B.sum() < 240


def test_squares_are_cut_out_of_the_image():
    """Away from the edge a ramp stays one: its slope is the side of the square, its values lie in the image."""
    found_BHWC = shown(Views(0, PATCH, flip=False, crop=0.4))
    slope_B = (found_BHWC[:, 10, 8, 0] - found_BHWC[:, 6, 8, 0]) / 4 * SIZE
    across_B = (found_BHWC[:, 8, 10, 1] - found_BHWC[:, 8, 6, 1]) / 4 * SIZE
    torch.testing.assert_close(slope_B, across_B, atol=2e-5, rtol=0)
    assert 0.4 <= slope_B.min() < 0.42
    assert 0.98 < slope_B.max() <= 1.0001
    assert slope_B.mean() == pytest.approx(0.7, abs=0.03)
    middle_B2 = found_BHWC[:, 7:9, 7:9].mean((1, 2))
    room_B2 = (middle_B2 - slope_B[:, None] / 2) / (1 - slope_B[:, None])  # 0 at one edge of the image, 1 at the other
    is_small_B = slope_B < 0.9
    assert -1e-3 < room_B2[is_small_B].min() < 0.02
    assert 0.98 < room_B2[is_small_B].max() < 1.001


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_only_training_images_are_shown_so_and_anew_in_each_epoch(digits_shards, memory_bytes):
    plain = DataConfig(source="digits", shards=str(digits_shards), holdout=100, memory_bytes=memory_bytes)
    data = plain.model_copy(update={"flip": True, "crop": 0.8})
    index = open_index(data)
    position_B = torch.arange(64)
    for split, seed, is_same in (
        ("train", 0, False),
        ("train", None, True),
        ("test", None, True),
        ("holdout", 0, True),
    ):
        found, as_it_lies = (open_stream(each, index, split, seed).read(position_B) for each in (data, plain))
        assert torch.equal(found.x_BLD, as_it_lies.x_BLD) == is_same
        assert torch.equal(found.label_B, as_it_lies.label_B)
    train = open_stream(data, index, "train", 0)
    order_N = train.order(torch.arange(2 * train.images))
    again = int((order_N[train.images :] == order_N[0]).nonzero()) + train.images
    first_2LD = train.read(torch.tensor([0, again])).x_BLD
    assert not torch.equal(first_2LD[0], first_2LD[1])


def test_codes_that_are_there_already_cannot_be_cut_out():
    of_codes = {"source": "celeba", "image_size": 128, "patch_size": 16, "code_dim": 512}
    with pytest.raises(ValidationError, match="not codes of whole images: set data.encode=on_the_fly"):
        DataConfig(**of_codes, crop=0.8)
    assert DataConfig(**of_codes, crop=0.8, encode="on_the_fly").has_views
