"""What changes while a run goes on: learning rates, the decay of the average, β. Pure functions of the images seen."""

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from data.section import Section
from model.objective import ObjectiveConfig
from trainer.engines.optimizers.config import OptimizerConfig


class ScheduleConfig(Section):
    """The learning rates rise linearly over warmup_images; then they stay, or fall to final_share at the end.

    cosine and linear fall from then on. wsd (warm-up, stable, decay) stays, and falls linearly over the last
    decay_images.
    """

    name: Literal["constant", "cosine", "linear", "wsd"] = "constant"  # what follows the warm-up
    warmup_images: int = Field(0, ge=0)  # over which the rates rise
    decay_images: int = Field(0, ge=0)  # of wsd
    final_share: float = Field(0.0, ge=0, le=1)  # of the rates, that is left at the end

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if (self.name == "wsd") != (self.decay_images > 0):
            raise ValueError("decay_images is the length of the decay of schedule.name=wsd: give both or neither")
        return self


@dataclass(frozen=True)
class Rates:
    """What a step takes from the schedules.

    learning: the share of their learning rates that all rules of the optimizer take, 0 to 1. ema_decay: the share of
    the average that the step keeps; 0 copies the weights. beta: the weight of the KL.
    """

    learning: float
    ema_decay: float
    beta: float


def learning_share(schedule: ScheduleConfig, images: int, batch_size: int, total_images: int) -> float:
    """Of the learning rates, for the step that starts after `images` images."""
    if images < schedule.warmup_images:
        return min(1.0, (images + batch_size) / schedule.warmup_images)
    start = total_images - schedule.decay_images if schedule.name == "wsd" else schedule.warmup_images
    progress = min(1.0, max(0, images - start) / max(1, total_images - start))
    cosine = 0.5 * (1 - math.cos(math.pi * progress))
    fallen = {"constant": 0.0, "cosine": cosine, "linear": progress, "wsd": progress}
    return 1.0 - (1.0 - schedule.final_share) * fallen[schedule.name]


def ema_decay(optimizer: OptimizerConfig, images: int, batch_size: int) -> float:
    """The share of the average that a step keeps; 0 copies the weights."""
    halflife = min(optimizer.ema_halflife_images, optimizer.ema_rampup * images)
    return 0.5 ** (batch_size / halflife) if halflife else 0.0


def beta_at(objective: ObjectiveConfig, images: int, total_images: int) -> float:
    """β of the step that starts after `images` images: beta_start, then growing by a constant factor to beta."""
    first, last = (share * total_images for share in objective.beta_range)
    if objective.beta_start is None or images >= last:
        return objective.beta
    progress = max(0.0, images - first) / max(1.0, last - first)
    return objective.beta_start * (objective.beta / objective.beta_start) ** progress
