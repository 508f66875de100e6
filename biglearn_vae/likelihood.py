"""Bounds of log-likelihoods, with σ² = β and all constants: the objective divided by β is a bound of this kind."""

import math

import torch
from torch import Tensor

from data import randomness
from model.biglearn import BigLearnModel


def importance_weighted_bound(
    model: BigLearnModel,
    x_BLD: Tensor,
    observed_BL: Tensor,
    target_BL: Tensor,
    *,
    variance: float,
    samples: int,
    seed: int,
    index_B: Tensor,
) -> Tensor:
    """E log 1/k Σ p(x_T | z, x_S) p(z | x_S) / p(z | x_{S∪T}) with z ~ p(z | x_{S∪T}), a bound of log p(x_T | x_S).

    (B,) float32, nats. observed_BL, target_BL: S and T. variance: σ² of a pixel. samples: k >= 1, one after the other.
    index_B: the numbers of the images, which with the seed give the draws.
    """
    posterior, prior = model.encode(x_BLD, observed_BL | target_BL), model.prior(x_BLD, observed_BL)
    n_values_B = target_BL.sum(1) * x_BLD.shape[-1]
    log_sum_B = torch.full_like(index_B, -math.inf, dtype=torch.float32)
    for k in range(samples):
        noise_BZ = randomness.normal(seed, f"bound {k}", index_B, posterior.mu_BZ.shape[1])
        z_BZ = posterior.draw(noise_BZ)
        error_BL = (model.decode(z_BZ, x_BLD, observed_BL) - x_BLD).square().sum(-1)
        log_x_B = -0.5 * ((error_BL * target_BL).sum(1) / variance + n_values_B * math.log(2 * math.pi * variance))
        weight_B = log_x_B + prior.log_prob(z_BZ) - posterior.log_prob(z_BZ)
        log_sum_B = torch.logaddexp(log_sum_B, weight_B)
    return log_sum_B - math.log(samples)
