"""What a model is asked to do: the same numbers as one call of `BigLearnVAE`, computed with other jobs or alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation


@dataclass(frozen=True)
class Job:
    """work: what is asked. number: of draws, images or steps. given: one image each, that the work needs.

    names: of the images that come back, where they are of several kinds.
    """

    work: "Work"
    number: int = 1
    given: tuple[Observation, ...] = ()
    seed: int = 0
    names: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """That are computed for it."""
        return self.number

    def goes_with(self, other: "Job") -> bool:
        """Whether both can be computed in one batch."""
        return self.work == other.work and (self.number == other.number or not self.given)


# Results of some jobs that go together, in their order: images (N, H, W, 3), with alpha (N, H, W, 4), or mean and log
# variance of a code (2, Z).
Work = Callable[[BigLearnVAE, Sequence[Job]], list[torch.Tensor]]


def inpaint(vae: BigLearnVAE, jobs: Sequence[Job]) -> list[torch.Tensor]:
    return list(vae.inpaint(_joined(jobs, 0), **_draws_of(jobs)).unbind(1))


def infer(vae: BigLearnVAE, jobs: Sequence[Job]) -> list[torch.Tensor]:
    return list(vae.infer(_joined(jobs, 0), **_draws_of(jobs)).unbind(1))


def _draws_of(jobs: Sequence[Job]) -> dict:
    return {"draws": jobs[0].number, "seed": [job.seed for job in jobs], "first_index": [0] * len(jobs)}


def generate(vae: BigLearnVAE, jobs: Sequence[Job]) -> list[torch.Tensor]:
    seeds = [job.seed for job in jobs for _ in range(job.number)]
    images_BHWC = vae.generate(len(seeds), seed=seeds, first_index=[n for job in jobs for n in range(job.number)])
    return list(images_BHWC.split([job.number for job in jobs]))


def encode(vae: BigLearnVAE, jobs: Sequence[Job]) -> list[torch.Tensor]:
    found = vae.encode(_joined(jobs, 0))
    return list(torch.stack([found.mu_BZ, found.logvar_BZ], dim=1))


def interpolate(vae: BigLearnVAE, jobs: Sequence[Job]) -> list[torch.Tensor]:
    images_KBHWC = vae.interpolate(_joined(jobs, 0), _joined(jobs, 1), jobs[0].number)
    return list(images_KBHWC.unbind(1))


def read(vae: BigLearnVAE, jobs: Sequence[Job]) -> list[torch.Tensor]:
    """What is known of the images, alpha 0 elsewhere."""
    given = _joined(jobs, 0)
    images_BHWA = torch.cat([given.images_BHWC, given.seen_BHW[..., None].float()], dim=-1)
    return list(images_BHWA[:, None])


def _joined(jobs: Sequence[Job], place: int) -> Observation:
    given = [job.given[place] for job in jobs]
    return replace(
        given[0],
        images_BHWC=torch.cat([each.images_BHWC for each in given]),
        seen_BHW=torch.cat([each.seen_BHW for each in given]),
        observed_BL=torch.cat([each.observed_BL for each in given]),
    )
