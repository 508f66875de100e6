"""Pseudo-Gibbs sampling through a joint model (Rezende et al. 2014, appendix F): the baseline for in-painting."""

import torch
from torch import Tensor

from data import randomness
from model.biglearn import BigLearnModel


def pseudo_gibbs(
    model: BigLearnModel,
    x_BLD: Tensor,
    observed_BL: Tensor,
    start_LD: Tensor,
    *,
    variance: float,
    burn_in: int,
    steps: int,
    draws: int,
    seed: int,
    index_B: Tensor,
) -> list[Tensor]:
    """Alternate z ~ p(z | x) and x_missing ~ N(mean of p(x | z), variance), the known patches held fast.

    start_LD: what the missing patches start from. After burn_in steps, the means of every `steps`-th step are given,
    `draws` of them, (B, L, D) each, the known patches untouched. index_B: the numbers of the images, which with the
    seed give the draws.
    """
    everything_BL, nothing_BL = torch.ones_like(observed_BL), torch.zeros_like(observed_BL)
    chain_BLD = torch.where(observed_BL[..., None], x_BLD, start_LD)
    states = []
    for step in range(burn_in + draws * steps):
        posterior = model.encode(chain_BLD, everything_BL)
        z_BZ = posterior.draw(randomness.normal(seed, f"pseudo-Gibbs z {step}", index_B, posterior.mu_BZ.shape[1]))
        mean_BLD = torch.where(observed_BL[..., None], x_BLD, model.decode(z_BZ, chain_BLD, nothing_BL))
        if step >= burn_in and (step - burn_in + 1) % steps == 0:
            states.append(mean_BLD)
        noise_BN = randomness.normal(seed, f"pseudo-Gibbs x {step}", index_B, x_BLD[0].numel())
        noisy_BLD = mean_BLD + variance**0.5 * noise_BN.view_as(x_BLD)
        chain_BLD = torch.where(observed_BL[..., None], x_BLD, noisy_BLD)
    return states
