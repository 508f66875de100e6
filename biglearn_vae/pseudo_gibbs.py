"""Chains of images through a joint model, the baselines for in-painting: pseudo-Gibbs and Metropolis-within-Gibbs."""

import torch
from torch import Tensor

from data import randomness
from model.biglearn import BigLearnModel
from model.gaussian import Gaussian, Prior

WARM_UP = 20  # steps of pseudo-Gibbs: far from what the model knows, hardly a proposal would be accepted


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
    metropolis: bool = False,
) -> list[Tensor]:
    """Alternate z ~ p(z | x) and x_missing ~ N(mean of p(x | z), variance), the known patches held fast.

    So by itself it is pseudo-Gibbs (Rezende et al. 2014, appendix F), whose chain has another distribution than the
    model where p(z | x) is not its posterior. metropolis: after the first WARM_UP steps such a z is only proposed, and
    accepted as often as the model's own posterior asks for (Metropolis-within-Gibbs; Mattei & Frellsen 2018).

    start_LD: what the missing patches start from. After burn_in steps, the means of every `steps`-th step are given,
    `draws` of them, (B, L, D) each, the known patches untouched. index_B: the numbers of the images, which with the
    seed give the draws.
    """
    everything_BL, nothing_BL = torch.ones_like(observed_BL), torch.zeros_like(observed_BL)
    chain_BLD, found = torch.where(observed_BL[..., None], x_BLD, start_LD), None
    prior = model.prior(x_BLD, nothing_BL) if metropolis else None
    states = []
    for step in range(burn_in + draws * steps):
        posterior = model.encode(chain_BLD, everything_BL)
        z_BZ = posterior.draw(randomness.normal(seed, f"pseudo-Gibbs z {step}", index_B, posterior.mu_BZ.shape[1]))
        new = z_BZ, model.decode(z_BZ, chain_BLD, nothing_BL)
        if prior and found and step >= WARM_UP:
            weights_B = [_log_weight(chain_BLD, *pair, variance, prior, posterior) for pair in (new, found)]
            uniform_B = randomness.uniform(seed, f"pseudo-Gibbs accept {step}", index_B, 1).squeeze(1)
            accepted_B = uniform_B.log() < weights_B[0] - weights_B[1]
            found = tuple(torch.where(_as_wide(accepted_B, a), a, b) for a, b in zip(new, found, strict=True))
        else:
            found = new
        mean_BLD = torch.where(observed_BL[..., None], x_BLD, found[1])
        if step >= burn_in and (step - burn_in + 1) % steps == 0:
            states.append(mean_BLD)
        noise_BN = randomness.normal(seed, f"pseudo-Gibbs x {step}", index_B, x_BLD[0].numel())
        noisy_BLD = mean_BLD + variance**0.5 * noise_BN.view_as(x_BLD)
        chain_BLD = torch.where(observed_BL[..., None], x_BLD, noisy_BLD)
    return states


def _log_weight(
    x_BLD: Tensor, z_BZ: Tensor, mean_BLD: Tensor, variance: float, prior: Prior, posterior: Gaussian
) -> Tensor:
    """log p(x, z) - log q(z | x) of whole images, but for a constant, (B,)."""
    error_B = (x_BLD - mean_BLD).square().sum((1, 2))
    return -0.5 * error_B / variance + prior.log_prob(z_BZ) - posterior.log_prob(z_BZ)


def _as_wide(value_B: Tensor, like: Tensor) -> Tensor:
    return value_B.view(-1, *[1] * (like.dim() - 1))
