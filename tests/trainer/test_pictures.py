"""The sheet of pictures."""

import torch

from data.index import load_index
from data.stream import Stream
from model.masks import place_masks
from model.task import EVALUATION_SEED
from trainer.build import build_task
from trainer.pictures import capability_rows, draw_sheet


def test_in_painting_keeps_the_observed_patches_and_draws_differ(tiny):
    task = build_task(tiny())
    x_BLD, index_B = torch.rand(4, 16, 192), torch.arange(4)
    rows = capability_rows(task, x_BLD, index_B)
    half = [label for label, _ in rows].index("half missing")
    seen_BL, _ = place_masks(*[torch.full((4,), 8)] * 2, index_B, 16, EVALUATION_SEED)
    first, second = rows[half + 1][1], rows[half + 2][1]
    for painted in (rows[half][1], first, second):
        assert torch.equal(painted[seen_BL], x_BLD[seen_BL])
    assert not torch.equal(first[~seen_BL], second[~seen_BL])


def test_sheet_has_one_row_a_capability_and_one_column_an_image(tiny, digits_shards):
    stream = Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)
    for method, rows in (("biglearn_u", 10), ("vae", 4)):
        picture = draw_sheet(build_task(tiny(f"method={method}")), stream, 8, "title", columns=5)
        assert picture.height - 30 == rows * 68
        assert picture.width - 190 == 5 * 68
