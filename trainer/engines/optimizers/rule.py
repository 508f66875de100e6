"""What an optimizer is made of: how the parameters of one group follow from their gradients."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from trainer.engines.optimizers.pieces import Pieces

Params = list[Any]  # tensors; that each has a gradient, torch's types cannot say
States = Sequence[dict[str, Tensor]]


class Rule(ABC):
    """How a step changes parameters. It never makes the host wait, so that a CUDA graph can hold it."""

    MOMENTS: ClassVar[tuple[str, ...]]  # the tensors of the state, each of the shape of its parameter
    learning_rate: float  # at the height of the schedule
    weight_decay: float  # of matrices

    @abstractmethod
    def step(
        self, params: Params, states: States, pieces: Sequence[Pieces], lr: Tensor | float, decay: float, skip: Tensor
    ) -> None:
        """Update parameters, which have a gradient each, and their states in place.

        states: by name the MOMENTS, and `step`, in which AdamW's kernel counts its steps. pieces: how each parameter
        holds the matrices of the trunk; none for other parameters. lr: the rate of this step. decay: the decoupled
        weight decay, a share of lr. skip: float32 scalar; where it is 1 nothing must change, and the gradients may not
        be finite.
        """
