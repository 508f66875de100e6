"""What is served: a model, and other ways to fill what is missing, beside which it is judged."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation
from serving.jobs import Job

# (what is known, number of the first image) -> images with the missing part filled, (draws, B, H, W, 3); by name
Fillers = Mapping[str, Callable[[Observation, int], Tensor]]


@dataclass(frozen=True, eq=False)
class Served:
    """fillers: as soon as they are there; None where there are none."""

    vae: BigLearnVAE
    fillers: "Future[Fillers] | None" = None

    def fill(self, vae: BigLearnVAE, jobs: Sequence[Job]) -> list[Tensor]:
        """Work: an image by each filler, (fillers, H, W, 3); one at a time, as chains draw by the image's number."""
        fillers = self.fillers.result().values()
        return [torch.stack([fill(job.given[0], 0)[0, 0] for fill in fillers]) for job in jobs]
