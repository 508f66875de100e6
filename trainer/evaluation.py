"""Evaluation on test images: means of what the evaluators of a task measure of each image."""

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from data.read.stream import Stream
from data.section import Section
from trainer.metrics.progress import progress
from trainer.ranks.world import World


class EvaluateConfig(Section):
    """When and on how many test images. There is always an evaluation before the first step and after the last."""

    every_images: int = Field(0, ge=0)  # 0: only before and after
    picture_every_images: int = Field(0, ge=0)  # an evaluation, and a picture of what the model can do
    images: int | None = Field(None, gt=0)  # the first so many of the test split; null: all of them
    batch_size: int = Field(256, gt=0)  # of one rank; the figures do not depend on it


def evaluate(task: nn.Module, stream: Stream, config: EvaluateConfig, world: World) -> dict[str, float]:
    """What `task.summary` makes of the means over the test images, each rank taking an equal run of them.

    An evaluator that measures fewer images has means over these, of which each rank takes an equal run, too.
    """
    images = min(config.images or stream.images, stream.images)
    means: dict[str, Tensor] = {}
    for evaluator in task.evaluators:
        count = min(images, evaluator.most_images or images)
        mine = torch.arange(count).tensor_split(world.size)[world.rank]
        sums: dict[str, Tensor] = {}
        portions = mine.split(config.batch_size) if len(mine) else ()
        for position_B in progress(portions, "evaluate", shown=world.is_main):
            for name, value_B in evaluator.measure(stream.read(position_B)).items():
                sums[name] = sums.get(name, 0.0) + value_B.double().sum(0).cpu()
        of_ranks: list = [None] * world.size
        dist.all_gather_object(of_ranks, sums)
        means |= {name: sum(s.get(name, 0.0) for s in of_ranks) / count for name in of_ranks[0]}
    return task.summary(means)
