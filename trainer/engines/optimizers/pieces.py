"""What a rank holds of matrices: all of each, or the pieces that a ZeRO stage leaves to it.

An update by Muon needs whole matrices. `gather` makes them of what this rank and the others hold, `scatter` gives
back what this rank holds of them; both are collective. A shape is (matrices, rows, columns): the weight of q, k and
v together is three matrices.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Shape = tuple[int, int, int]


class Pieces(ABC):
    """How one tensor of the optimizer holds matrices of these shapes."""

    def __init__(self, shapes: Sequence[Shape]):
        self.shapes = shapes

    @abstractmethod
    def gather(self, held: Tensor) -> list[Tensor]:
        """The matrices, whole, on every rank: one tensor of each shape."""

    @abstractmethod
    def scatter(self, wholes: Sequence[Tensor], held: Tensor) -> Tensor:
        """This rank's pieces of whole matrices, of the shape of `held`."""


class Whole(Pieces):
    """One parameter that every rank holds whole: plain torch, ZeRO 0."""

    def gather(self, held: Tensor) -> list[Tensor]:
        return [held.reshape(self.shapes[0])]

    def scatter(self, wholes: Sequence[Tensor], held: Tensor) -> Tensor:
        return wholes[0].reshape(held.shape)


class Contiguous(Pieces):
    """ZeRO 1 and 2: all parameters one after the other and padded, cut into one piece for each rank."""

    def gather(self, held: Tensor) -> list[Tensor]:
        flat = _gather(held).flatten()
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = flat[: sum(sizes)].split(sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def scatter(self, wholes: Sequence[Tensor], held: Tensor) -> Tensor:
        flat = torch.cat([whole.flatten() for whole in wholes])
        start = dist.get_rank() * len(held)
        mine = flat[start : start + len(held)]
        return torch.cat([mine, mine.new_zeros(len(held) - len(mine))])


class Interleaved(Pieces):
    """ZeRO 3: each parameter padded and cut into one piece for each rank; a rank's pieces one after the other."""

    def gather(self, held: Tensor) -> list[Tensor]:
        world_size = dist.get_world_size()
        pieces = _gather(held).split([self._piece(shape, world_size) for shape in self.shapes], dim=1)
        return [
            piece.flatten()[: math.prod(shape)].view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)
        ]

    def scatter(self, wholes: Sequence[Tensor], held: Tensor) -> Tensor:
        world_size = dist.get_world_size()
        mine: list[Tensor] = []
        for whole in wholes:
            piece = self._piece(whole.shape, world_size)
            start = dist.get_rank() * piece
            part = whole.flatten()[start : start + piece]
            mine += [part, part.new_zeros(piece - len(part))]
        return torch.cat(mine)

    @staticmethod
    def _piece(shape: Sequence[int], world_size: int) -> int:
        return -(-math.prod(shape) // world_size)


def _gather(held: Tensor) -> Tensor:
    """What all ranks hold, (world_size, len(held))."""
    world_size = dist.get_world_size()
    if world_size == 1:
        return held[None]
    found = held.new_empty(world_size, len(held))
    dist.all_gather_into_tensor(found.view(-1), held.contiguous())
    return found
