"""Evaluation: fixed masks and noise, whatever the batches."""

import pytest
import torch

from data.index import load_index
from data.stream import Stream
from model.task import ACTIVE_VARIANCE
from trainer.build import build_task
from trainer.evaluation import EvaluateConfig, evaluate


@pytest.fixture
def test_stream(digits_shards):
    return Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)


@pytest.mark.parametrize("method", ["vae", "biglearn_t", "biglearn_u"])
def test_figures_do_not_depend_on_the_batch_size(tiny, world, test_stream, method):
    task = build_task(tiny(f"method={method}"))
    one, other = (evaluate(task, test_stream, EvaluateConfig(batch_size=b, images=50), world) for b in (50, 7))
    assert one == pytest.approx(other, rel=1e-5)
    elbos, errors = ("biglearn", "joint"), ("inpainting_error", "inpainting_error_fifth")
    assert set(one) == {*(f"{name}_elbo" for name in elbos), "joint_elbo_standard_prior", *errors, "active_units"}


def test_figures_are_means_over_the_images(tiny, world, test_stream):
    task = build_task(tiny())
    torch.nn.init.normal_(task.model.z_head[1].fc2.weight, std=0.2)  # some units are active, some are not
    values = evaluate(task, test_stream, EvaluateConfig(batch_size=7, images=50), world)
    images = test_stream.read(torch.arange(50))
    of_samples = task.evaluate(images)
    everything_BL = torch.ones(images.x_BLD.shape[:2], dtype=torch.bool)
    mu_BZ = of_samples.pop("posterior_mean").double()
    assert torch.equal(mu_BZ, task.model.encode(images.x_BLD, everything_BL)[0].double())
    assert torch.equal(of_samples.pop("posterior_mean_square").double().sqrt().float(), mu_BZ.abs().float())
    assert values.pop("active_units") == (mu_BZ.var(0, unbiased=False) > ACTIVE_VARIANCE).sum()
    assert values.keys() == of_samples.keys()
    for name, value_B in of_samples.items():
        assert values[name] == pytest.approx(value_B.double().mean().item(), rel=1e-5)


def test_joint_elbo_has_the_prior_of_the_method(tiny, world, test_stream):
    for method, differ in (("vae", False), ("biglearn_u", True)):
        task = build_task(tiny(f"method={method}"))
        torch.nn.init.normal_(task.model.z_head[1].fc2.bias)
        values = evaluate(task, test_stream, EvaluateConfig(images=8), world)
        assert (values["joint_elbo"] != values["joint_elbo_standard_prior"]) == differ
