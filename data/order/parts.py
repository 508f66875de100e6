"""Which images of a split are read: all, those of a list, or all but those."""

from typing import Protocol

import torch
from torch import Tensor


class Part(Protocol):
    """images: how many."""

    images: int

    def index(self, place_B: Tensor) -> Tensor:
        """The index in the split of the image at each place of the part, 0 .. images - 1: (B,) int64 on the CPU."""

    def has(self, index: int) -> bool:
        """Whether the image of this index in the split belongs to the part."""


class Whole:
    """All images of a split, in its order."""

    def __init__(self, images: int):
        self.images = images

    def index(self, place_B: Tensor) -> Tensor:
        return place_B

    def has(self, index: int) -> bool:
        return 0 <= index < self.images


class Listed:
    """Some images, in the order of a list. index_N: (N,) int64, each at most once."""

    def __init__(self, index_N: Tensor):
        self.index_N, self.images = index_N, len(index_N)
        self._indices = frozenset(index_N.tolist())

    def index(self, place_B: Tensor) -> Tensor:
        return self.index_N[place_B]

    def has(self, index: int) -> bool:
        return index in self._indices


class AllBut:
    """The images of a split without those of another part, in the order of the split; only the others are held."""

    def __init__(self, images: int, others: Listed):
        self.images = images - others.images
        self._others = others
        left_out_N = others.index_N.sort().values
        self._before_N = left_out_N - torch.arange(len(left_out_N))  # images of the part before each one left out

    def index(self, place_B: Tensor) -> Tensor:
        return place_B + torch.searchsorted(self._before_N, place_B, right=True)

    def has(self, index: int) -> bool:
        return 0 <= index < self.images + self._others.images and not self._others.has(index)
