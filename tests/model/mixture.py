"""For the tests, another prior, a mixture of Gaussians of variance 1 with equal weights, and a method with it."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.gaussian import Gaussian
from model.masks import Plan
from model.method import METHODS


@dataclass(frozen=True)
class Mixture:
    """mean_KZ: of its components."""

    mean_KZ: Tensor

    @classmethod
    def of_two(cls, like_BZ: Tensor) -> "Mixture":
        mean_Z = torch.full_like(like_BZ[0], 2.0)
        return cls(torch.stack([mean_Z, -mean_Z]))

    def draw(self, noise_BZ: Tensor) -> Tensor:
        """The components in turn."""
        return self.mean_KZ[torch.arange(len(noise_BZ)) % len(self.mean_KZ)] + noise_BZ

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        parts = [Gaussian.standard(z_BZ).log_prob(z_BZ - mean_Z) for mean_Z in self.mean_KZ]
        return torch.stack(parts).logsumexp(0) - math.log(len(parts))

    def kl_of(self, posterior: Gaussian, z_BZ: Tensor) -> Tensor:
        return posterior.log_prob(z_BZ) - self.log_prob(z_BZ)


def of_sizes(objective, patches: int, seed: int) -> tuple[Plan, ...]:
    """Parts of images, a size for each group, all predicted from nothing."""
    return (Plan(tuple((0, patches - group) for group in range(objective.groups))),)


MIXTURE_VAE = replace(METHODS["vae"], name="mixture_vae", plans=of_sizes, fixed_prior=Mixture.of_two)
