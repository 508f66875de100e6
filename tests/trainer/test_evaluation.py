"""Evaluation: fixed masks and noise, whatever the batches."""

from dataclasses import replace

import pytest
import torch

from data.read.index import load_index
from data.read.stream import Stream
from trainer.build import build_task
from trainer.evaluation import EvaluateConfig, evaluate
from trainer.tasks import biglearn as tasks
from trainer.tasks.biglearn import ACTIVE_VARIANCE, INPAINTING_ERRORS


@pytest.fixture
def test_stream(digits_shards):
    return Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)


@pytest.mark.parametrize("method", ["vae", "biglearn_t", "biglearn_u"])
def test_figures_do_not_depend_on_the_batch_size(tiny, world, test_stream, method):
    task = build_task(tiny(f"method={method}"))
    one, other = (evaluate(task, test_stream, EvaluateConfig(batch_size=b, images=50), world) for b in (50, 7))
    assert one == pytest.approx(other, rel=1e-5)
    elbos = ("biglearn_elbo", "joint_elbo", "joint_elbo_standard_prior")
    assert set(one) == {*elbos, *(f"{name}_at_0.01" for name in elbos), *INPAINTING_ERRORS, "active_units"}


def test_figures_are_means_over_the_images(tiny, world, test_stream):
    task = build_task(tiny())
    torch.nn.init.normal_(task.model.z_head[1].fc2.weight, std=0.2)  # some units are active, some are not
    values = evaluate(task, test_stream, EvaluateConfig(batch_size=7, images=50), world)
    images = test_stream.read(torch.arange(50))
    of_samples = task.evaluate(images) | task.inpainting_errors(images)
    everything_BL = torch.ones(images.x_BLD.shape[:2], dtype=torch.bool)
    mu_BZ = of_samples.pop("posterior_mean").double()
    assert torch.equal(mu_BZ, task.model.encode(images.x_BLD, everything_BL)[0].double())
    assert torch.equal(of_samples.pop("posterior_mean_square").double().sqrt().float(), mu_BZ.abs().float())
    assert values.pop("active_units") == (mu_BZ.var(0, unbiased=False) > ACTIVE_VARIANCE).sum()
    assert values.keys() == of_samples.keys()
    for name, value_B in of_samples.items():
        assert values[name] == pytest.approx(value_B.double().mean().item(), rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 3, 11])
def test_in_painting_is_measured_on_the_first_images_whatever_the_ranks(tiny, world, test_stream, monkeypatch, ranks):
    """ELBOs on all 20 images, errors on the first 10, each a mean over what it was measured on."""
    monkeypatch.setattr(tasks, "INPAINTING_IMAGES", 10)
    task = build_task(tiny())
    images = test_stream.read(torch.arange(20))
    expected = {name: v_B.mean().item() for name, v_B in task.evaluate(images).items() if v_B.dim() == 1}
    expected |= {name: value_B[:10].mean().item() for name, value_B in task.inpainting_errors(images).items()}
    values = of_ranks(task, test_stream, EvaluateConfig(batch_size=4, images=20), world, ranks, monkeypatch)
    values.pop("active_units")
    assert values == pytest.approx(expected, rel=1e-5)


def of_ranks(task, stream, config, world, ranks, monkeypatch) -> dict[str, float]:
    """What `ranks` ranks find together, one after the other in this process: all but the last note what they gather."""
    gathered = []

    def gather(of_ranks, sums):
        gathered[-1].append(sums)
        of_ranks[:] = [sums] if len(gathered) < ranks else [rank[len(gathered[-1]) - 1] for rank in gathered]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    for rank in range(ranks):
        gathered.append([])
        values = evaluate(task, stream, config, replace(world, rank=rank, size=ranks))
    return values


def test_joint_elbo_has_the_prior_of_the_method(tiny, world, test_stream):
    for method, differ in (("vae", False), ("biglearn_u", True)):
        task = build_task(tiny(f"method={method}"))
        torch.nn.init.normal_(task.model.z_head[1].fc2.bias)
        values = evaluate(task, test_stream, EvaluateConfig(images=8), world)
        assert (values["joint_elbo"] != values["joint_elbo_standard_prior"]) == differ
