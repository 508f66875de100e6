"""Held-out images: which they are, and the sequences of both parts of the training split."""

import shutil

import pytest
import torch

from data.errors import UserError
from data.order.holdout import draw_any, draw_few, split_training, trained_images
from data.read.stream import Stream, prefetch

HELD_OUT = 300
IN_MEMORY, FROM_SHARDS = 2**31, 0


def parts(digits, seed=0, memory_bytes=IN_MEMORY):
    """The streams to train on and to look at."""
    index, root = digits
    trained, held_out = split_training(index.images["train"], HELD_OUT, draw_any)
    how = {"patch_size": 4, "memory_bytes": memory_bytes}
    stream = Stream(index, root, "train", seed=seed, part=trained, **how)
    return stream, Stream(index, root, "train", seed=None, part=held_out, **how)


def indices(part):
    return part.index(torch.arange(part.images))


def test_the_choice_never_changes():
    """Golden: a change here would train every resumed run on what it was chosen by."""
    trained, held_out = split_training(1437, 5, draw_any)
    assert indices(held_out).tolist() == [963, 200, 619, 31, 1348]
    assert torch.equal(indices(trained), indices(trained).sort().values)
    assert torch.equal(draw_any(1437, 300)[:5], held_out.index_N)


@pytest.mark.parametrize("draw", [draw_any, draw_few])
@pytest.mark.parametrize(("images", "holdout"), [(10, 1), (1000, 999), (1437, 300)])
def test_every_image_is_in_one_part(draw, images, holdout):
    trained, held_out = split_training(images, holdout, draw)
    assert sorted(indices(trained).tolist() + indices(held_out).tolist()) == list(range(images))
    for index in (-1, 0, images // 2, images - 1, images):
        assert trained.has(index) == (index in indices(trained).tolist())
        assert held_out.has(index) == (index in indices(held_out).tolist())


def test_few_are_held_out_of_any_number():
    trained, held_out = split_training(10**12, 3, draw_few)
    assert torch.equal(draw_few(10**12, 2), held_out.index_N[:2])
    assert torch.equal(draw_few(10**12, 3), held_out.index_N)
    assert trained.index(torch.tensor([0, 10**12 - 4])).tolist() == [0, 10**12 - 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_both_parts_together_are_the_split_for_any_seed(digits, seed):
    trained, held_out = parts(digits, seed)
    assert (trained.images, held_out.images) == (1437 - HELD_OUT, HELD_OUT)
    positions = torch.arange(3 * trained.images).view(3, -1)
    for epoch_B in positions:  # of which each has every image once
        both = torch.cat([trained.order(epoch_B), held_out.order(torch.arange(HELD_OUT))])
        assert both.sort().values.tolist() == list(range(1437))
    assert not torch.equal(trained.order(positions[0]), trained.order(positions[1]))
    assert held_out.order(torch.arange(HELD_OUT)).tolist() == draw_any(1437, HELD_OUT).tolist()


@pytest.mark.parametrize("draw", [draw_any, draw_few])
def test_classes_mix_where_images_are_sorted_by_class(draw):
    label_N = torch.arange(6000) // 600
    trained_N, held_out_N = (indices(part) for part in split_training(6000, 1000, draw))
    for label_B in (label_N[held_out_N], label_N[held_out_N[:200]], label_N[trained_N]):
        share_K = label_B.bincount(minlength=10) / len(label_B)
        assert (share_K - 0.1).abs().max() < 0.05


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("memory_bytes", [IN_MEMORY, FROM_SHARDS])
def test_both_ways_of_reading_give_these_images_on_any_ranks_and_threads(digits, memory_bytes, workers):
    index, root = digits
    whole = Stream(index, root, "train", patch_size=4, seed=None)
    for stream in parts(digits, memory_bytes=memory_bytes):
        position_B = torch.arange(stream.images - 40, stream.images + 40)  # over the seam of an epoch
        for mine_B in position_B.tensor_split(2):  # of two ranks
            for batch in prefetch(stream.read, mine_B.split(7), workers):
                expected = whole.read(stream.order(batch.index_B))
                assert torch.equal(batch.x_BLD, expected.x_BLD)
                assert torch.equal(batch.label_B, expected.label_B)


@pytest.mark.parametrize("memory_bytes", [IN_MEMORY, FROM_SHARDS])
def test_a_damaged_image_is_replaced_by_one_of_its_part(digits, tmp_path, memory_bytes):
    index, root = digits[0], shutil.copytree(digits[1], tmp_path / "copy")
    trained_N, held_out_N = (indices(part) for part in split_training(1437, HELD_OUT, draw_any))
    damaged = trained_N[torch.isin(trained_N + 1, held_out_N)][0].item()  # one to train on before one held out
    stand_in = trained_N[trained_N > damaged][0]
    shard = index.splits["train"][0]
    with (root / shard.name).open("r+b") as file:
        file.seek(shard.records[damaged // 100].images.offset + 128 + damaged % 100 * 1024)
        file.write(b"\xaa" * 1024)
    trained, held_out = parts((index, root), seed=None, memory_bytes=memory_bytes)
    position_B = (trained_N == damaged).nonzero().flatten()
    expected = Stream(*digits, "train", patch_size=4, seed=None).read(stand_in[None])
    assert torch.equal(trained.read(position_B).x_BLD, expected.x_BLD)
    held_out.read(torch.arange(HELD_OUT))
    assert (list(trained.damaged), held_out.damaged) == ([damaged], {})


@pytest.mark.parametrize("holdout", [1437, 2000])
def test_something_must_be_left_to_train_on(holdout):
    with pytest.raises(UserError, match=f"data.holdout={holdout} leaves none of the 1,437 training images"):
        split_training(1437, holdout, draw_any)
    assert trained_images(1437, 1436) == 1
