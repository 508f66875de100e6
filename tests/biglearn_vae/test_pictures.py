"""The sheet of pictures."""

import pytest
import torch

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from biglearn_vae.observation import pixels_of
from biglearn_vae.pictures import capability_rows, draw_sheet, read_images
from data.read.index import load_index
from data.read.stream import Stream
from model.masks import EVALUATION_SEED, place_masks
from trainer.build import build_task


@pytest.fixture
def untrained(tiny):
    """untrained(*overrides): a model as it is initialised."""

    def make(*overrides: str) -> BigLearnVAE:
        config = tiny(*overrides)
        return BigLearnVAE(build_task(config).model, Description.of(config, 0))

    return make


def test_rows_show_what_their_labels_say(untrained):
    """Samples know nothing of the images, in-paintings nothing of the missing part and keep the rest, draws differ."""
    images, others = torch.rand(4, 32, 32, 3), torch.rand(4, 32, 32, 3)
    vae = untrained()
    rows, of_others = capability_rows(vae, images), capability_rows(vae, others)
    for (label, ours), (_, theirs) in zip(rows, of_others, strict=True):
        assert torch.allclose(ours, theirs) == label.startswith("sample")
    seen_BL, _ = place_masks(*[torch.full((4,), 8)] * 2, torch.arange(4), 16, EVALUATION_SEED)
    seen_BHW = pixels_of(seen_BL, 32)
    half = [label for label, _ in rows].index("half missing")
    first, second = rows[half + 1][1], rows[half + 2][1]
    for painted in (rows[half][1], first, second):
        assert torch.equal(painted[seen_BHW], images[seen_BHW])
    assert not torch.equal(first[~seen_BHW], second[~seen_BHW])
    hidden = capability_rows(vae, torch.where(seen_BHW[..., None], images, others))
    assert torch.equal(hidden[half + 1][1], rows[half + 1][1])
    torch.testing.assert_close(rows[1][1], vae.decode(vae.encode(images).mu_BZ))


def test_sheet_has_one_row_a_capability_and_one_column_an_image(untrained, digits_shards):
    stream = Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)
    for method, rows in (("biglearn_u", 10), ("vae", 4)):
        picture = draw_sheet(untrained(f"method={method}"), stream, "title", columns=5)
        assert picture.height - 30 == rows * 68
        assert picture.width - 190 == 5 * 68


def test_images_of_a_stream_are_upright(digits_shards):
    stream = Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)
    x_BLD = stream.read(torch.arange(2)).x_BLD
    image = read_images(stream, torch.arange(2))[1]
    assert torch.equal(image[8:16, 16:24].flatten(), x_BLD[1, 6].float())  # the second row, the third column
