"""The objective: the KL, eq. (1) as a case of eq. (7), and what each pass is given."""

import math

import torch
from torch.distributions import Normal, kl_divergence

from model.gaussian import Gaussian
from model.objective import elbo_terms
from tests.model.test_biglearn import L, Z, images, small_model, subsets


def test_kl_is_the_integral():
    mu_q, logvar_q, mu_p, logvar_p = torch.tensor([[0.3, -0.7, 0.1, 0.4]], dtype=torch.float64).T
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    q, p = Normal(mu_q, (logvar_q / 2).exp()), Normal(mu_p, (logvar_p / 2).exp())
    integral = torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid)
    posterior, prior = Gaussian(mu_q, logvar_q), Gaussian(mu_p, logvar_p)
    torch.testing.assert_close(prior.kl_of(posterior, mu_q), integral, rtol=1e-9, atol=1e-12)
    assert posterior.kl_of(posterior, mu_q) == 0


def test_equation_7_with_nothing_observed_and_a_standard_prior_is_equation_1():
    model, x_BLD, beta = small_model("biglearn_u", "query_only"), images(), 0.01
    nothing_BL = torch.zeros(3, L, dtype=torch.bool)
    noise_BZ = torch.randn(3, Z)
    terms = elbo_terms(model, x_BLD, nothing_BL, ~nothing_BL, noise_BZ)
    terms = terms.with_prior(Gaussian.standard(noise_BZ))

    mu_BZ, logvar_BZ = model.encode(x_BLD, ~nothing_BL)
    posterior = Normal(mu_BZ, (logvar_BZ / 2).exp())
    likelihood = Normal(model.decode(mu_BZ + posterior.scale * noise_BZ, x_BLD, nothing_BL), 1.0)
    log_likelihood_B = (likelihood.log_prob(x_BLD) + 0.5 * math.log(2 * math.pi)).sum((1, 2))
    kl_B = kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(terms.elbo_B(beta), log_likelihood_B - beta * kl_B)


def test_reconstruction_counts_the_targets_alone():
    """Eqs. (4) and (5): the likelihood is that of x_T."""
    model, x_BLD, noise_BZ = small_model("biglearn_t", "dense"), images(), torch.randn(3, Z)
    observed_BL, target_BL = subsets(3, 6, 4)
    terms = elbo_terms(model, x_BLD, observed_BL, target_BL, noise_BZ)
    mu_BZ, logvar_BZ = model.encode(x_BLD, observed_BL | target_BL)
    mean_BLD = model.decode(mu_BZ + (logvar_BZ / 2).exp() * noise_BZ, x_BLD, observed_BL)
    expected_B = torch.stack([-0.5 * (mean_BLD - x_BLD)[b][target_BL[b]].square().sum() for b in range(3)])
    torch.testing.assert_close(terms.reconstruction_B, expected_B)


def test_targets_reach_decode_and_prior_only_through_z():
    """With z held fixed, nothing else of the objective's two passes over x_S moves with x_T."""
    model, x_BLD = small_model("biglearn_u", "dense"), images()
    observed_BL, target_BL = subsets(3, 6, 4)
    other_BLD = torch.where(target_BL[..., None], torch.rand_like(x_BLD), x_BLD)
    calls = []

    def fixed_posterior(x_BLD, given_BL):
        calls.append(("encode", given_BL))
        result = type(model).encode(model, x_BLD, given_BL)
        return Gaussian.standard(torch.zeros(3, Z)) if torch.equal(given_BL, observed_BL | target_BL) else result

    def decode(z_BZ, x_BLD, given_BL):
        calls.append(("decode", given_BL))
        return type(model).decode(model, z_BZ, x_BLD, given_BL)

    model.encode, model.decode = fixed_posterior, decode
    noise_BZ = torch.randn(3, Z)
    kls = [elbo_terms(model, x, observed_BL, target_BL, noise_BZ).kl_B for x in (x_BLD, other_BLD)]
    assert torch.equal(*kls)
    for name, given_BL in calls:
        through_z = name == "encode" and torch.equal(given_BL, observed_BL | target_BL)
        assert through_z or torch.equal(given_BL, observed_BL)


def test_gradients_flow_through_both_arms_of_the_kl():
    model, x_BLD = small_model("biglearn_u", "dense"), images()
    torch.nn.init.normal_(model.z_head[1].fc2.weight)  # away from the start, where both variances are one number
    observed_BL, target_BL = subsets(3, 6, 4)
    arms = []

    def remembered(x_BLD, given_BL):
        arms.append(type(model).encode(model, x_BLD, given_BL))
        return arms[-1]

    model.encode = remembered
    terms = elbo_terms(model, x_BLD, observed_BL, target_BL, torch.randn(3, Z))
    (mu_q, logvar_q), (mu_p, logvar_p) = arms
    for gradient in torch.autograd.grad(terms.kl_B.sum(), (mu_q, logvar_q, mu_p, logvar_p), retain_graph=True):
        assert gradient.abs().sum() > 0
    for gradient in torch.autograd.grad(terms.reconstruction_B.sum(), (mu_q, logvar_q)):
        assert gradient.abs().sum() > 0  # through z

    mu_q, mu_p = torch.ones(1, 1, requires_grad=True), torch.zeros(1, 1, requires_grad=True)
    zero = torch.zeros(1, 1)
    Gaussian(mu_p, zero).kl_of(Gaussian(mu_q, zero), mu_q).sum().backward()
    assert mu_q.grad.item() == 1
    assert mu_p.grad.item() == -1
