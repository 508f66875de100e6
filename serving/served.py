"""What is served: a model, and other ways to do what it does."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation
from serving.jobs import Job

# (what is known, number of the first image) -> images with the missing part filled, (draws, B, H, W, 3); by name
Ways = Mapping[str, Callable[[Observation, int], Tensor]]


@dataclass(frozen=True, eq=False)
class Served:
    """ways: to fill what is missing, as soon as they are there; None where there are none."""

    vae: BigLearnVAE
    ways: "Future[Ways] | None" = None

    def fill(self, vae: BigLearnVAE, jobs: Sequence[Job]) -> list[Tensor]:
        """Work: each image filled by every way, (ways, H, W, 3). One image at a time: a chain draws by its number."""
        ways = self.ways.result().values()
        return [torch.stack([way(job.given[0], 0)[0, 0] for way in ways]) for job in jobs]
