"""How the images of a measurement are shared between ranks, and how what they find comes together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.ranks.world import World


def share(count: int, world: World, portion: int = 100) -> Sequence[Tensor]:
    """Of the positions 0 .. count - 1 those of this rank, in portions."""
    mine = torch.arange(count).tensor_split(world.size)[world.rank]
    return mine.split(portion) if len(mine) else ()


def gathered(world: World, parts: list[Tensor]) -> Tensor:
    """The values of all ranks, in the order of the positions."""
    return torch.cat([part for of_rank in world.gather(parts) for part in of_rank])


def mean_and_error(value_B: Tensor) -> dict[str, float | None]:
    """Mean and standard error, which a single value has not."""
    value_B = value_B.double()
    error = value_B.std().item() / len(value_B) ** 0.5 if len(value_B) > 1 else None
    return {"mean": value_B.mean().item(), "standard_error": error}
