"""Which image comes at which place of an epoch: pure functions of (seed, position), exactly once an epoch."""

from typing import Protocol

import torch
from torch import Tensor

from data.order.weave import Weave
from data.randomness import keyed_permutation, permutation


class Order(Protocol):
    """law: names the function. look_ahead: positions that are worth to be known before they are read; 0 if none are."""

    law: str
    look_ahead: int

    def place(self, position_B: Tensor) -> Tensor:
        """The place in the data set, 0 .. images - 1, of each position of the endless sequence: (B,) int64 on the CPU.

        Position n is in epoch n // images.
        """


class FileOrder:
    """As the images lie, in every epoch."""

    law = "file"
    look_ahead = 0

    def __init__(self, images: int):
        self._images = images

    def place(self, position_B: Tensor) -> Tensor:
        return position_B % self._images


class Permuted:
    """Every order is as likely as any other, and a whole epoch's is held: 8 bytes an image, of the last two epochs."""

    law = "permuted"
    look_ahead = 0

    def __init__(self, images: int, seed: int):
        self._images, self._seed = images, seed
        self._orders: dict[int, Tensor] = {}  # a batch may cross the seam

    def place(self, position_B: Tensor) -> Tensor:
        epoch_B, turn_B = position_B // self._images, position_B % self._images
        place_B = torch.empty_like(turn_B)
        for epoch in epoch_B.unique().tolist():
            chosen_B = epoch_B == epoch
            place_B[chosen_B] = self._order_of(epoch)[turn_B[chosen_B]]
        return place_B

    def _order_of(self, epoch: int) -> Tensor:
        order_N = self._orders.get(epoch)
        if order_N is None:  # threads that read ahead may both make one: it is the same
            order_N = permutation(self._seed, "order", torch.tensor([epoch]), self._images)[0]
            kept = sorted(self._orders.items())[-1:]
            self._orders = dict([*kept, (epoch, order_N)])
        return order_N


class Woven:
    """Blocks of neighbouring images in a random order, dealt to lanes; the lanes take turns, image by image.

    In each epoch the blocks are permuted and dealt to K lanes in turn. A lane's images are shuffled within windows of
    some of its blocks. Position t of an epoch is the next image of lane t mod K: a rank that takes every P-th position,
    P a divisor of K, reads the blocks of K / P lanes and no others, and the sequence of all is the same for any P.
    Blocks that do not divide by K, fewer than K of them, and images that fill no block come last, shuffled.

    Nothing is held: time and memory of a position do not depend on the number of images.
    """

    def __init__(self, images: int, seed: int, weave: Weave):
        self._images, self._seed, self._weave = images, seed, weave
        self._blocks = images // weave.block
        self._of_lane = self._blocks // weave.lanes
        self._woven = self._of_lane * weave.lanes * weave.block
        self.law = f"woven from {weave.lanes} lanes, windows of {weave.window} blocks of {weave.block} images"
        self.look_ahead = min(weave.images, images)

    def place(self, position_B: Tensor) -> Tensor:
        epoch_B, turn_B = position_B // self._images, position_B % self._images
        is_woven_B = turn_B < self._woven
        place_B = torch.empty_like(turn_B)
        place_B[is_woven_B] = self._in_lanes(epoch_B[is_woven_B], turn_B[is_woven_B])
        place_B[~is_woven_B] = self._behind(epoch_B[~is_woven_B], turn_B[~is_woven_B] - self._woven)
        return place_B

    def _in_lanes(self, epoch_B: Tensor, turn_B: Tensor) -> Tensor:
        lanes, block, window = self._weave.lanes, self._weave.block, self._weave.window
        lane_B, turn_B = turn_B % lanes, turn_B // lanes
        window_B, inner_B = turn_B // (window * block), turn_B % (window * block)
        blocks_B = (self._of_lane - window_B * window).clamp(max=window)
        key_B = (epoch_B * (self._of_lane // window + 1) + window_B) * lanes + lane_B
        inner_B = keyed_permutation(self._seed, "window", key_B, inner_B, blocks_B * block)
        dealt_B = (window_B * window + inner_B // block) * lanes + lane_B
        return self._block(epoch_B, dealt_B) * block + inner_B % block

    def _behind(self, epoch_B: Tensor, turn_B: Tensor) -> Tensor:
        left = torch.full_like(turn_B, self._images - self._woven)
        turn_B = keyed_permutation(self._seed, "behind", epoch_B, turn_B, left)
        block = self._weave.block
        dealt = self._of_lane * self._weave.lanes
        rest = self._blocks - dealt  # whole blocks; after them the images that fill none
        in_block_B = turn_B < rest * block
        place_B = self._blocks * block + turn_B - rest * block
        whole_B = self._block(epoch_B[in_block_B], dealt + turn_B[in_block_B] // block)
        place_B[in_block_B] = whole_B * block + turn_B[in_block_B] % block
        return place_B

    def _block(self, epoch_B: Tensor, dealt_B: Tensor) -> Tensor:
        """The block that is the dealt_B-th of its epoch."""
        return keyed_permutation(self._seed, "blocks", epoch_B, dealt_B, torch.full_like(dealt_B, self._blocks))
