"""What the stream hands to a model: the same for patches of pixels and for PatchAE codes."""

from dataclasses import dataclass, fields
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B samples of L tokens.

    x_BLD: float32, pixels of patches in [0, 1] (or PatchAE codes).
    index_B: int64, the position of each sample in the endless training sequence; it alone seeds the masks
        and the noise of that sample, so they do not depend on the number of ranks or workers.
    label_B: int64 class labels, or None.
    observed_BL: reserved for training data that is itself incomplete; None means fully observed.
    """

    x_BLD: Tensor
    index_B: Tensor
    label_B: Tensor | None = None
    observed_BL: Tensor | None = None

    def split(self, samples: int) -> list[Self]:
        """Batches of so many samples, the last one of what is left; they are views."""
        count = -(-len(self.index_B) // samples)
        tensors = [getattr(self, field.name) for field in fields(self)]
        parts = [[None] * count if x is None else x.split(samples) for x in tensors]
        return [type(self)(*of_part) for of_part in zip(*parts, strict=True)]
