"""The Gaussian baseline: against dense algebra, scipy, and processes whose conditional mean is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from biglearn_vae.observation import observe
from data.patches import patchify
from evaluation import gaussian
from evaluation.gaussian import NOISES, ConditionalGaussian, squared_error
from model.masks import STANDARD_MASKS, standard_mask

SIDE, PATCH, NOISE = 8, 2, 0.003
L = (SIDE // PATCH) ** 2


def faces(count: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Images whose pixels are correlated, all different, in [0, 1]."""
    rng = np.random.default_rng(seed)
    factor_KP = np.random.default_rng(99).standard_normal((12, SIDE * SIDE * channels))
    x_NP = 0.5 + 0.02 * rng.standard_normal((count, 12)) @ factor_KP + 0.03 * rng.standard_normal((count, 1))
    x_NP += 0.02 * rng.standard_normal(x_NP.shape)
    return torch.from_numpy(x_NP.clip(0, 1)).float().view(count, SIDE, SIDE, channels).expand(-1, -1, -1, 3)


def given_of(images_BHWC: torch.Tensor, mask: str = "half seen"):
    whole = observe(images_BHWC.numpy(), image_size=images_BHWC.shape[1], patch_size=PATCH)
    return whole.hide(~standard_mask(mask, torch.arange(len(whole)), whole.observed_BL.shape[1]))


def dense_fill(train_NHWC, given, channels, noise):
    """By the textbook: m_u + C_uk C_kk^-1 (x_k - m_k), one image after the other."""
    x_NP = train_NHWC[..., :channels].double().flatten(1).numpy()
    mean_P, cov_PP = x_NP.mean(0), np.cov(x_NP.T, bias=True) + noise * np.eye(x_NP.shape[1])
    filled = []
    for image_HWC, seen_HW in zip(given.images_BHWC, given.seen_BHW, strict=True):
        known_P = np.repeat(seen_HW.numpy().reshape(-1), channels)
        x_P = image_HWC[..., :channels].double().numpy().reshape(-1)
        delta_K = np.linalg.solve(cov_PP[np.ix_(known_P, known_P)], (x_P - mean_P)[known_P])
        x_P[~known_P] = (mean_P[~known_P] + cov_PP[np.ix_(~known_P, known_P)] @ delta_K).clip(0, 1)
        filled.append(torch.from_numpy(x_P).float().view(SIDE, SIDE, channels).expand(-1, -1, 3))
    return torch.stack(filled)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mask", STANDARD_MASKS)
def test_a_filling_is_that_of_the_sample_covariance_with_a_ridge(channels, mask):
    train, test = faces(300, channels=channels), faces(7, seed=1, channels=channels)
    fitted = ConditionalGaussian.fit(train, PATCH, NOISE)
    assert (fitted.channels, len(fitted.variance_R)) == (channels, SIDE * SIDE * channels)
    given = given_of(test, mask)
    filled = fitted.fill(given)
    torch.testing.assert_close(filled, dense_fill(train, given, channels, NOISE), atol=1e-5, rtol=0)
    assert torch.equal(filled[given.seen_BHW], test[given.seen_BHW])
    assert filled.dtype == torch.float32


def test_a_filling_does_not_depend_on_the_images_beside_it():
    fitted = ConditionalGaussian.fit(faces(300), PATCH, NOISE)
    given = given_of(faces(40, seed=1))  # more masks than are in memory at once
    alone = torch.cat([fitted.fill(given[b : b + 1]) for b in range(40)])
    torch.testing.assert_close(fitted.fill(given), alone, atol=1e-6, rtol=0)


def test_low_rank_is_the_dense_gaussian_where_there_is_no_more(monkeypatch):
    """Images of exactly 12 factors, by the randomised decomposition: what it leaves out is nothing."""
    rng = np.random.default_rng(0)
    x_NP = 0.5 + 0.03 * rng.standard_normal((200, 12)) @ rng.standard_normal((12, SIDE * SIDE * 3))
    train = torch.from_numpy(x_NP).float().view(-1, SIDE, SIDE, 3)
    dense = ConditionalGaussian.fit(train, PATCH, NOISE)
    monkeypatch.setattr(gaussian, "_EXACT_VALUES", 0)
    monkeypatch.setattr(gaussian, "MOST_COMPONENTS", 12)
    low = ConditionalGaussian.fit(train, PATCH, NOISE)
    assert len(low.variance_R) == len(dense.variance_R) == 12  # what is left has no variance
    given = given_of(train[:9].clamp(0, 1))
    torch.testing.assert_close(low.fill(given), dense.fill(given), atol=1e-5, rtol=0)
    torch.testing.assert_close(low.log_density(train[:9]), dense.log_density(train[:9]), atol=1e-2, rtol=0)


def test_known_answer_of_two_patches_of_one_correlated_pixel_each():
    """Grey images of 2x2 pixels, each a patch, of which those of a row share a correlation of 0.8 and rows none."""
    cov_PP = 0.01 * np.kron(np.eye(2), np.array([[1, 0.8], [0.8, 1]]))
    variance_R, vector_PR = np.linalg.eigh(cov_PP - 0.001 * np.eye(4))
    given_C = ConditionalGaussian(
        torch.full((4, 1), 0.5, dtype=torch.float64),
        torch.from_numpy(vector_PR).view(4, 1, 4),
        torch.from_numpy(variance_R),
        noise=0.001,
        channels=1,
        images=1,
    )
    x = torch.tensor([[0.6, math.nan], [math.nan, math.nan]]).view(1, 2, 2)
    filled = given_C.fill(observe(x.numpy(), image_size=2, patch_size=1))
    assert filled[0, ..., 0].flatten().tolist() == pytest.approx([0.6, 0.58, 0.5, 0.5], abs=1e-6)


def test_nothing_known_is_filled_with_the_mean():
    train = faces(100)
    given = given_of(train[:2])
    nothing = given.hide(torch.ones_like(given.observed_BL))
    filled = ConditionalGaussian.fit(train, PATCH, NOISE).fill(nothing)
    torch.testing.assert_close(filled, train.mean(0).expand(2, -1, -1, -1), atol=1e-5, rtol=0)


def three_channels(train_NHWC, grey: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance without noise of all 3 P values, as a model sees them."""
    x_NP = train_NHWC.double().flatten(1).numpy()
    return x_NP.mean(0), np.cov(x_NP.T, bias=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_log_density_is_that_of_scipy_for_all_three_channels(channels):
    train, test = faces(300, channels=channels), faces(5, seed=1, channels=channels)
    mean_P, cov_PP = three_channels(train, channels == 1)
    own = NOISE * 3 / channels  # so that the mean of three grey channels has the noise of one
    expected = multivariate_normal(mean_P, cov_PP + own * np.eye(len(mean_P))).logpdf(test.flatten(1).double().numpy())
    found = ConditionalGaussian.fit(train, PATCH, NOISE).log_density(test)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("latent_dim", [4, 500])
def test_joint_elbo_is_that_of_the_best_linear_decoder(channels, latent_dim):
    """Of all 3 P values with a noise of β, W as Tipping and Bishop give it: a larger or smaller one is worse."""
    train, test, beta = faces(400, channels=channels), faces(400, channels=channels), 0.004
    mean_P, cov_PP = three_channels(train, channels == 1)
    variance_R, vector_PR = np.linalg.eigh(cov_PP)
    kept_PR, excess_R = vector_PR[:, -latent_dim:], (variance_R[-latent_dim:] - beta).clip(min=0)
    x_BP, values = test.flatten(1).double().numpy(), len(mean_P)

    def elbo_B(scale):
        cov = scale * (kept_PR * excess_R) @ kept_PR.T + beta * np.eye(values)
        return beta * (multivariate_normal(mean_P, cov).logpdf(x_BP) + values / 2 * np.log(2 * np.pi * beta))

    found = ConditionalGaussian.fit(train, PATCH, NOISE).joint_elbo(test, latent_dim, beta)
    assert found.tolist() == pytest.approx(elbo_B(1).tolist(), abs=1e-5)
    assert found.mean() > max(elbo_B(0.8).mean(), elbo_B(1.25).mean())


def test_the_noise_is_the_best_for_training_images_that_are_left_out(monkeypatch):
    """It is fitted to nine of ten images and measured on the others; the Gaussian has all of them."""
    train = faces(60)
    fitted = ConditionalGaussian.fit(train, PATCH)
    left_out_N = torch.arange(60) % 10 == 0
    parts = [given_of(train[left_out_N], mask) for mask in STANDARD_MASKS]
    error = {
        noise: sum(
            squared_error(given, train[left_out_N], dense_fill(train[~left_out_N], given, 3, noise)[None]).mean()
            for given in parts
        ).item()
        for noise in NOISES
    }
    assert fitted.noise == min(error, key=error.get)
    assert len({round(value, 6) for value in error.values()}) > 3
    again = ConditionalGaussian.fit(train, PATCH, fitted.noise)
    assert torch.equal(fitted.mean_LD, again.mean_LD)
    assert torch.equal(fitted.variance_R, again.variance_R)
    smooth = train.mean((1, 2), keepdim=True).expand(-1, SIDE, SIDE, 3) + 0.5 * torch.eye(SIDE)[..., None]
    assert ConditionalGaussian.fit(smooth.clamp(0, 1), PATCH).noise < fitted.noise


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_few_images_are_enough(count):
    train = faces(count)
    fitted = ConditionalGaussian.fit(train, PATCH)
    filled = fitted.fill(given_of(faces(2, seed=1)))
    assert filled.isfinite().all()
    assert fitted.log_density(train).isfinite().all()
    assert fitted.joint_elbo(train, 4, 0.01).isfinite().all()


def test_squared_error_is_of_the_missing_part_of_each_filling():
    x = faces(3)
    given = given_of(x)
    filled = torch.stack([x, x + 0.1])
    filled[:, given.seen_BHW] = 7
    found = squared_error(given, x, filled)
    torch.testing.assert_close(found, torch.tensor([[0.0] * 3, [0.01] * 3]), atol=1e-6, rtol=0)
    patches = patchify((~given.seen_BHW)[..., None].float(), PATCH)
    assert (patches.mean(-1).sum(1) == L // 2).all()
