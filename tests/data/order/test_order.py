"""The laws of the order: each image once an epoch, for any number of ranks, and well shuffled."""

import pytest
import torch

from data.order.order import FileOrder, Permuted, Woven
from data.order.weave import Weave

SMALL = Weave(lanes=8, block=4, window=3)
SIZES = [1, 5, 31, 32, 33, 8 * 4 * 3, 8 * 4 * 3 + 1, 1000, 1023, 4096]


def order_of(images, seed=0, weave=SMALL):
    return Woven(images, seed, weave)


@pytest.mark.parametrize("images", SIZES)
def test_every_epoch_has_every_image_once(images):
    order, epochs = order_of(images), torch.arange(3 * images).view(3, -1)
    for epoch_B in epochs:
        assert order.place(epoch_B).sort().values.tolist() == list(range(images))
    if images > 5:
        assert not torch.equal(order.place(epochs[0]), order.place(epochs[1]))
        assert not torch.equal(order.place(epochs[0]), order_of(images, seed=1).place(epochs[0]))


def test_the_order_never_changes():
    """Golden: a change here would show a resumed run other images."""
    assert order_of(1000).place(torch.arange(500, 508)).tolist() == GOLDEN
    assert order_of(10**12, weave=Weave()).place(torch.tensor([7, 5 * 10**12 + 3])).tolist() == GOLDEN_LARGE
    assert order_of(1000).law == "woven from 8 lanes, windows of 3 blocks of 4 images"


GOLDEN = [349, 919, 276, 408, 820, 720, 740, 746]
GOLDEN_LARGE = [731040223062, 151237007542]


@pytest.mark.parametrize("order", [order_of(1000), Permuted(1000, 0), FileOrder(1000)])
def test_a_place_depends_on_its_position_alone(order):
    position_B = torch.arange(990, 1100)
    together = order.place(position_B)
    assert torch.equal(together, torch.cat([order.place(position[None]) for position in position_B]))
    mixed_B = position_B[torch.randperm(len(position_B), generator=torch.Generator().manual_seed(0))]
    assert torch.equal(order.place(mixed_B), together[mixed_B - 990])


@pytest.mark.parametrize("shares", [1, 2, 4, 8])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_shares_read_blocks_of_their_own(shares, epoch):
    images = 1003  # so that the lanes of a share change from epoch to epoch
    order, woven = order_of(images), 1003 // 32 * 32
    first = epoch * images
    blocks = [
        set((order.place(torch.arange(first, first + woven)[share::shares]) // SMALL.block).tolist())
        for share in range(shares)
    ]
    assert sum(map(len, blocks)) == len(set().union(*blocks)) == woven // SMALL.block


def test_a_share_needs_few_blocks_at_once():
    """Of the blocks that are begun, at most those of one window of its lanes are not read to their end."""
    order, shares = order_of(8 * 4 * 3 * 20), 2
    open_blocks, most = {}, 0
    for block in (order.place(torch.arange(order._images)[::shares]) // SMALL.block).tolist():
        open_blocks[block] = open_blocks.get(block, 0) + 1
        most = max(most, sum(count < SMALL.block for count in open_blocks.values()))
    assert most <= SMALL.lanes // shares * SMALL.window


def test_sorted_classes_mix_as_in_a_permutation():
    """Ten classes, one after the other: how far the shares of a batch are from a tenth, against chance."""
    images, batch = 50_000, 500
    label_N = torch.arange(images) * 10 // images
    spread = {}
    for name, order in (("woven", order_of(images, weave=Weave())), ("permuted", Permuted(images, 0))):
        labels = label_N[order.place(torch.arange(images))].view(-1, batch)
        counts = torch.stack([(labels == label).sum(1) for label in range(10)]).float()
        spread[name] = counts.std().item()
    assert spread["woven"] < 1.4 * spread["permuted"]


def test_an_order_of_any_size_is_at_hand_at_once():
    order = order_of(10**15, weave=Weave())
    place_B = order.place(torch.arange(10**18, 10**18 + 1000))
    assert len(place_B.unique()) == 1000
    assert (place_B >= 0).all()
    assert (place_B < 10**15).all()
