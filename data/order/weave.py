"""How the order of a data set that is read in runs is woven, beside the seed; `data.order.order.Woven` says what of."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

_Count = Annotated[int, Field(gt=0, le=2**31)]


@dataclass(frozen=True)
class Weave:
    """lanes: how many sequences of blocks are woven into one. block: neighbouring images that are read at once.

    window: blocks of a lane among which its images are shuffled.
    """

    lanes: _Count = 256
    block: _Count = 16
    window: _Count = 2

    @property
    def images(self) -> int:
        """Images among which one is drawn at any time."""
        return self.lanes * self.window * self.block
