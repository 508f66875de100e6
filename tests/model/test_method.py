"""A method is an entry of METHODS, a prior a class of its own: another one of each trains as the shipped ones do."""

import pytest
import torch

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from data.batch import Batch
from data.errors import UserError
from model.biglearn import BigLearnModel, ModelConfig
from model.gaussian import Gaussian
from model.masks import plan_masks
from model.method import METHODS
from model.objective import ObjectiveConfig, elbo_terms
from tests.model.halves import HALVES
from tests.model.mixture import MIXTURE_VAE, Mixture
from tests.model.test_biglearn import D, L, Z, images
from trainer.build import build_task, meta_task
from trainer.tasks.biglearn import BigLearnTask
from trainer.tasks.cost import measure_cost

BETA = 0.05


@pytest.fixture(params=[HALVES, MIXTURE_VAE], ids=lambda method: method.name)
def task(request, monkeypatch) -> BigLearnTask:
    monkeypatch.setitem(METHODS, request.param.name, request.param)
    torch.manual_seed(0)
    config = ModelConfig(embed_dim=16, encoder_depth=1, decoder_depth=1, num_heads=2, latent_dim=Z)
    return BigLearnTask(BigLearnModel(config, request.param.name, D, L), ObjectiveConfig(beta=BETA, groups=2), seed=0)


def test_it_learns_and_its_evaluation_is_by_its_own_score(task):
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    batch = Batch(images(16), torch.arange(16))
    before = task.score({name: value.mean() for name, value in task.evaluate(batch).items()})
    for _ in range(60):
        optimizer.zero_grad()
        task(batch, task.plans[0], beta=BETA)[0].backward()
        optimizer.step()
    assert task.score({name: value.mean() for name, value in task.evaluate(batch).items()}) > before + 1


def test_what_trains_is_what_encode_and_decode_say(task):
    batch = Batch(images(16), torch.arange(16))
    terms = task.sample_terms(batch, task.plans[0], beta=BETA)
    masks = plan_masks(task.plans[0], batch.index_B, L, task.seed)
    expected = elbo_terms(task.model, batch.x_BLD, *masks, task._noise(batch.index_B, task.seed))
    torch.testing.assert_close(terms["kl"], expected.kl_B)
    torch.testing.assert_close(terms["elbo"], expected.elbo_B(BETA))


def test_a_fixed_prior_has_as_many_groups_as_its_plans(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "vae", MIXTURE_VAE)
    with pytest.raises(UserError, match="4 mask groups"):
        tiny("method=vae", "train.batch_size=18").micro_batch_size(world_size=1)
    config = tiny("method=vae", "objective.groups=8")
    cost = measure_cost(meta_task(config), config.data.patches, config.data.token_dim)
    assert cost.tokens_per_image > config.data.patches


def test_where_nothing_is_known_codes_are_of_the_fixed_prior(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "vae", MIXTURE_VAE)
    config = tiny("method=vae")
    vae = BigLearnVAE(build_task(config).model, Description.of(config, 0))
    nothing = torch.full((2, 32, 32, 3), torch.nan)
    (z_BZ,) = vae._codes(vae.observe(nothing), 1, 3, 0)
    torch.testing.assert_close(z_BZ, vae.prior(2).draw(vae._noise("draw 0", 3, 2, 0)))
    assert (z_BZ[0] - z_BZ[1]).mean() > 2  # of two components


def test_a_mixture_of_one_is_a_gaussian():
    posterior, z_BZ = Gaussian(torch.ones(4, Z), torch.full((4, Z), -1.0)), torch.randn(4, Z)
    standard, alone = Gaussian.standard(z_BZ), Mixture(torch.zeros(1, Z))
    torch.testing.assert_close(alone.log_prob(z_BZ), standard.log_prob(z_BZ))
    draws = [posterior.draw(torch.randn(4, Z)) for _ in range(20_000)]
    estimate_B = torch.stack([alone.kl_of(posterior, z_BZ) for z_BZ in draws]).mean(0)
    torch.testing.assert_close(estimate_B, standard.kl_of(posterior, z_BZ), rtol=0.02, atol=0)
