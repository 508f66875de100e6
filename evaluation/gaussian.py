"""One Gaussian of whole images, in closed form: what a model of images must beat.

Its covariance has low rank plus a diagonal, C = U diag(v) U^T + noise I, in float64. Where the rank is the number of
values this is the sample covariance with a ridge; where it is lower, probabilistic PCA. What is known of an
image are whole patches, as a model sees them: what a patch adds to W^T W, W = U diag(v)^(1/2), is computed once, so an
image costs a sum of matrices of the rank and one Cholesky factor (Woodbury), not one of the size of the image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from biglearn_vae.observation import Observation, observe
from data.patches import patchify, unpatchify
from model.masks import STANDARD_MASKS, standard_mask

NOISES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # that the fit chooses from
MOST_COMPONENTS = 512
_LEAST_VARIANCE = NOISES[0] / 10  # of a component: beside the noise less is nothing
_GRAM_VALUES = 2**25  # in the matrices of all patches: 256 MiB
_EXACT_VALUES = 1024  # of an image, up to which the whole covariance is decomposed
_LEFT_OUT, _MOST_LEFT_OUT = 10, 50  # one training image in ten chooses the noise, and no more than these
_AT_ONCE = 16  # masks whose matrices are in memory


@dataclass(frozen=True)
class ConditionalGaussian:
    """N(m, U diag(v) U^T + noise I) of images as patches (L, D), all float64 on the CPU.

    mean_LD: m. components_LDR: U, orthonormal over (L, D). variance_R: v, at least 0, largest first. noise: above 0.
    channels: 1 for grey images, of whose three equal channels it has one, so D is patch_size^2; 3 for colour ones.
    images: that it was fitted to.
    """

    mean_LD: Tensor
    components_LDR: Tensor
    variance_R: Tensor
    noise: float
    channels: int
    images: int

    @classmethod
    def fit(cls, images_NHWC: Tensor, patch_size: int, noise: float | None = None) -> "ConditionalGaussian":
        """Of training images (N, H, W, 3) in [0, 1], N at least 1.

        noise: None chooses the one of NOISES with which a tenth of the images, left out of a fit to the others, is
        filled best: by the mean error over STANDARD_MASKS.
        """
        if noise is None:
            noise = _best_noise(images_NHWC, patch_size)
        grey = all(torch.equal(images_NHWC[..., 0], images_NHWC[..., c]) for c in (1, 2))
        channels = 1 if grey else 3
        x_NLD = patchify(images_NHWC[..., :channels], patch_size)
        mean_LD = x_NLD.mean(0, dtype=torch.float64)
        variance_R, components_PR = _principal(x_NLD.flatten(1), mean_LD.flatten(), patches=len(mean_LD))
        kept = max(1, int((variance_R > _LEAST_VARIANCE).sum()))
        variance_R, components_PR = variance_R[:kept], components_PR[:, :kept]
        return cls(mean_LD, components_PR.view(*mean_LD.shape, -1), variance_R, noise, channels, len(images_NHWC))

    def fill(self, given: Observation) -> Tensor:
        """The conditional mean of what is missing, given the observed patches: (B, H, W, 3) float32 in [0, 1].

        It is cut to [0, 1], where pixels are: a Gaussian does not know that, and its error only gets smaller. Known
        pixels come back untouched; a pixel whose patch is not observed does not count as known, as for a model.
        """
        delta_BLD = self._patches(given.images_BHWC) - self.mean_LD
        known_BR = torch.einsum("bld,bl,ldr->br", delta_BLD, given.observed_BL.double(), self._scaled_LDR)
        masks_ML, mask_B = given.observed_BL.unique(dim=0, return_inverse=True)
        z_BR = torch.empty_like(known_BR)
        for m, factor_RR in enumerate(self._factors(masks_ML)):
            of_mask_B = mask_B == m
            z_BR[of_mask_B] = torch.cholesky_solve(known_BR[of_mask_B].T, factor_RR).T
        x_BLD = self.mean_LD + torch.einsum("ldr,br->bld", self._scaled_LDR, z_BR)
        return given.complete(unpatchify(x_BLD, self._patch_size).float().clamp(0, 1).expand(-1, -1, -1, 3))

    def with_noise(self, noise: float) -> "ConditionalGaussian":
        """The same with another noise, above 0."""
        return replace(self, noise=noise)

    def log_density(self, images_BHWC: Tensor) -> Tensor:
        """log N(x; m, C) of whole images (B, H, W, 3), all constants included: (B,) float64, nats.

        Of all three channels, as a model counts them: a grey pixel is three equal values, each with a noise of three
        times `noise`, whose mean has the noise of the one channel.
        """
        values, copies = self.mean_LD.numel(), 3 // self.channels
        constant = values * math.log(2 * math.pi * self.noise) - copies * values * math.log(
            2 * math.pi * copies * self.noise
        )
        return self._log_density(images_BHWC) + 0.5 * constant

    def joint_elbo(self, images_BHWC: Tensor, latent_dim: int, beta: float) -> Tensor:
        """What stands beside the JointELBO of a model with so many latent dimensions: (B,) float64.

        The objective with variance 1 and β, divided by β, bounds log ∫ exp(-SSE / 2β) p(z) dz. With a linear decoder
        that integral is known: probabilistic PCA (Tipping & Bishop 1999), here with the most likely W for a noise of β,
        gives β (log N(x; m, W W^T + β I) + d/2 log(2π β)), which no choice of p(z | x) can exceed. SSE counts the three
        equal channels of a grey pixel, which leaves β / 3 for one channel.
        """
        noise = beta * self.channels / 3
        kept_R = self.variance_R[:latent_dim] - noise
        linear = replace(
            self, components_LDR=self.components_LDR[..., : len(kept_R)], variance_R=kept_R.clamp(min=0), noise=noise
        )
        return beta * (linear._log_density(images_BHWC) + 0.5 * self.mean_LD.numel() * math.log(2 * math.pi * noise))

    def _log_density(self, images_BHWC: Tensor) -> Tensor:
        """Of the channels that are modelled."""
        delta_BP = (self._patches(images_BHWC) - self.mean_LD).flatten(1)
        score_BR = delta_BP @ self.components_LDR.flatten(0, 1)
        spread_R = self.variance_R + self.noise
        rest_B = (delta_BP.square().sum(1) - score_BR.square().sum(1)).clamp(min=0)
        square_B = (score_BR.square() / spread_R).sum(1) + rest_B / self.noise
        values = delta_BP.shape[1]
        log_determinant = spread_R.log().sum() + (values - len(spread_R)) * math.log(self.noise)
        return -0.5 * (square_B + log_determinant + values * math.log(2 * math.pi))

    @property
    def _patch_size(self) -> int:
        return math.isqrt(self.mean_LD.shape[1] // self.channels)

    def _patches(self, images_BHWC: Tensor) -> Tensor:
        return patchify(images_BHWC[..., : self.channels], self._patch_size).double()

    @cached_property
    def _scaled_LDR(self) -> Tensor:
        """W of each patch."""
        return self.components_LDR * self.variance_R.sqrt()

    @cached_property
    def _gram_LRR(self) -> Tensor:
        """W^T W of each patch alone."""
        return self._scaled_LDR.transpose(1, 2) @ self._scaled_LDR

    def _factors(self, masks_ML: Tensor) -> Iterator[Tensor]:
        """The Cholesky factor of W_S^T W_S + noise I for each set S of observed patches."""
        patches, rank = len(self.mean_LD), len(self.variance_R)
        for some_ML in masks_ML.split(_AT_ONCE):
            sum_MRR = (some_ML.double() @ self._gram_LRR.view(patches, -1)).view(-1, rank, rank)
            sum_MRR.diagonal(dim1=1, dim2=2).add_(self.noise)
            yield from torch.linalg.cholesky(sum_MRR)


def _principal(x_NP: Tensor, mean_P: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of the covariance of x, (R,), and their eigenvectors, (P, R), float64.

    All of them, where they are few. Of large images by a randomised decomposition (Halko et al. 2011), always the same.
    """
    images, values = x_NP.shape
    rank = min(values, MOST_COMPONENTS, math.isqrt(_GRAM_VALUES // patches))
    if values <= _EXACT_VALUES:
        delta_NP = x_NP.double() - mean_P
        variance_P, vector_PP = torch.linalg.eigh(delta_NP.T @ delta_NP / images)
        return variance_P[-rank:].flip(0).clamp(min=0), vector_PP[:, -rank:].flip(1)
    delta_NP = x_NP - mean_P.float()
    _, length_R, vector_RP = randomized_svd(delta_NP.numpy(), min(rank, images), n_iter=2, random_state=0)
    return torch.from_numpy(np.square(length_R)).double() / images, torch.from_numpy(vector_RP.T).double()


def _best_noise(images_NHWC: Tensor, patch_size: int) -> float:
    if len(images_NHWC) < _LEFT_OUT:
        return NOISES[-1]
    is_left_out_N = torch.arange(len(images_NHWC)) % _LEFT_OUT == 0
    fitted = ConditionalGaussian.fit(images_NHWC[~is_left_out_N], patch_size, NOISES[0])
    images_BHWC = images_NHWC[is_left_out_N][:_MOST_LEFT_OUT]
    whole = observe(images_BHWC.numpy(), image_size=images_BHWC.shape[1], patch_size=patch_size)
    parts = [whole.hide(~standard_mask(mask, torch.arange(len(whole)), len(fitted.mean_LD))) for mask in STANDARD_MASKS]

    def error(noise: float) -> float:
        filler = fitted.with_noise(noise)
        return sum(squared_error(given, images_BHWC, filler.fill(given)[None]).mean().item() for given in parts)

    return min(NOISES, key=error)


def squared_error(given: Observation, images_BHWC: Tensor, filled_KBHWC: Tensor) -> Tensor:
    """Mean squared error a pixel and channel of the missing part of each of K fillings of each image: (K, B)."""
    missing_BHW = ~given.seen_BHW
    error_KBHW = (filled_KBHWC - images_BHWC).square().mean(-1)
    return (error_KBHW * missing_BHW).sum((-1, -2)) / missing_BHW.sum((1, 2))
