"""Distributions of z, one for each sample: posteriors p(z | x_{S∪T}) and priors p(z | x_S)."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Prior(Protocol):
    """What a prior of z must be able to do, for each of B samples."""

    def draw(self, noise_BZ: Tensor) -> Tensor:
        """z_BZ from standard normal noise."""

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        """The log density of each sample's z, (B,), nats."""

    def kl_of(self, posterior: "Gaussian", z_BZ: Tensor) -> Tensor:
        """KL(posterior || self) of each sample, (B,), nats: exact, or an estimate from z, a draw of the posterior."""


class Gaussian(NamedTuple):
    """N(mu, diag exp(logvar)) of each sample, (B, Z) each."""

    mu_BZ: Tensor
    logvar_BZ: Tensor

    @classmethod
    def standard(cls, like_BZ: Tensor) -> "Gaussian":
        """N(0, I), in the shape and on the device of a tensor."""
        return cls(torch.zeros_like(like_BZ), torch.zeros_like(like_BZ))

    @classmethod
    def merge(cls, parts: Sequence["Gaussian"]) -> "Gaussian":
        """Those of all samples, from those of some after others."""
        return cls(*(torch.cat(values) for values in zip(*parts, strict=True)))

    @property
    def sigma_BZ(self) -> Tensor:
        return (0.5 * self.logvar_BZ).exp()

    def of(self, rows: slice) -> "Gaussian":
        """Those of some samples."""
        return Gaussian(self.mu_BZ[rows], self.logvar_BZ[rows])

    def expand(self, count: int) -> "Gaussian":
        """The one of a single sample for so many."""
        return Gaussian(self.mu_BZ.expand(count, -1), self.logvar_BZ.expand(count, -1))

    def draw(self, noise_BZ: Tensor) -> Tensor:
        """z_BZ = mu + sigma * noise, the noise standard normal."""
        return self.mu_BZ + self.sigma_BZ * noise_BZ

    def log_prob(self, z_BZ: Tensor) -> Tensor:
        """The log density of each sample's z, (B,), nats."""
        square_BZ = (z_BZ - self.mu_BZ).square() * (-self.logvar_BZ).exp()
        return -0.5 * (square_BZ + self.logvar_BZ + math.log(2 * math.pi)).sum(-1)

    def kl_of(self, posterior: "Gaussian", z_BZ: Tensor) -> Tensor:
        """KL(posterior || self) of each sample, (B,), nats: exact."""
        ratio_BZ = (posterior.logvar_BZ - self.logvar_BZ).exp()
        square_BZ = (posterior.mu_BZ - self.mu_BZ).square() * (-self.logvar_BZ).exp()
        return 0.5 * (ratio_BZ + square_BZ - 1 - posterior.logvar_BZ + self.logvar_BZ).sum(-1)
