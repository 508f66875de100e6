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


def test_rows_show_what_their_labels_say(tiny):
    """Samples know nothing of the images, in-paintings nothing of the missing part, reconstructions only z."""
    task = build_task(tiny())
    index_B, x_BLD, other_BLD = torch.arange(4), torch.rand(4, 16, 192), torch.rand(4, 16, 192)
    rows, others = capability_rows(task, x_BLD, index_B), capability_rows(task, other_BLD, index_B)
    for (label, ours), (_, theirs) in zip(rows, others, strict=True):
        assert torch.allclose(ours, theirs) == label.startswith("sample")
    seen_BL, _ = place_masks(*[torch.full((4,), 8)] * 2, index_B, 16, EVALUATION_SEED)
    half = [label for label, _ in rows].index("half missing")
    hidden = capability_rows(task, torch.where(seen_BL[..., None], x_BLD, other_BLD), index_B)
    assert torch.equal(hidden[half + 1][1], rows[half + 1][1])
    mu_BZ, _ = task.model.encode(x_BLD, torch.ones(4, 16, dtype=torch.bool))
    from_z = task.model.decode(mu_BZ, torch.zeros_like(x_BLD), torch.zeros(4, 16, dtype=torch.bool))
    torch.testing.assert_close(rows[1][1], from_z)


def test_sheet_has_one_row_a_capability_and_one_column_an_image(tiny, digits_shards):
    stream = Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)
    for method, rows in (("biglearn_u", 10), ("vae", 4)):
        picture = draw_sheet(build_task(tiny(f"method={method}")), stream, 8, "title", columns=5)
        assert picture.height - 30 == rows * 68
        assert picture.width - 190 == 5 * 68
