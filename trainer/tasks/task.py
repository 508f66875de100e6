"""What the loop trains: a `Task`. One forward is one step; evaluation is values of each image."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor, nn

from data.batch import Batch
from data.read.config import DataConfig
from data.read.stream import Stream
from model.masks import Plan
from model.patch_autoencoder.codec import PatchCodec


@dataclass(frozen=True)
class Evaluator:
    """measure: values of each image of a batch, float32, (B,) each but for those of `summary`.

    most_images: it measures at most the first so many test images; None: all that are evaluated.
    """

    measure: Callable[[Batch], dict[str, Tensor]]
    most_images: int | None = None


class Task(nn.Module, ABC):
    """A model with its objective.

    plans: of the steps, in turn. groups: equal parts that a batch must divide into.
    """

    plans: tuple[Plan, ...]
    groups: int

    @abstractmethod
    def matrices(self) -> dict[str, tuple[int, int, int]]:
        """The weights that an optimizer may update as whole matrices: (how many, rows, columns)."""

    @abstractmethod
    def sample_terms(self, batch: Batch, plan: Plan, beta: Tensor | float) -> dict[str, Tensor]:
        """The terms of the loss of each sample, (B,)."""

    @abstractmethod
    def forward(self, batch: Batch, plan: Plan, beta: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, beta the weight of the KL, and its terms, scalars without gradients."""

    @property
    @abstractmethod
    def evaluators(self) -> tuple[Evaluator, ...]:
        """What an evaluation measures."""

    @abstractmethod
    def summary(self, means: dict[str, Tensor]) -> dict[str, float]:
        """Numbers, from the means of what `evaluators` measure over many images."""

    @abstractmethod
    def score(self, values: dict[str, float]) -> float:
        """The figure of an evaluation by which checkpoints are compared; higher is better."""

    @abstractmethod
    def picture(self, stream: Stream, data: DataConfig, codec: PatchCodec | None, values: dict) -> Image.Image:
        """What the model can do with test images. values: of an evaluation, with `images`, that it was trained on."""
