"""What a task trains and reports: terms by kind of task, evaluation with masks and noise of its own."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from data import randomness
from data.batch import Batch
from model.gaussian import Gaussian
from model.masks import EVALUATION_SEED, Plan, place_masks
from model.objective import ObjectiveConfig, elbo_terms
from model.patch_autoencoder.network import PatchAEConfig, PatchAutoencoder
from tests.model.test_biglearn import L, Z, images, small_model
from trainer.tasks.biglearn import INPAINTING_ERRORS, BigLearnTask
from trainer.tasks.patch_autoencoder import PatchAETask

BETA = 0.01
PLAN = Plan(((0, L), (0, 5), (6, 4), (0, L)))


def task_of(seed: int = 0, method: str = "biglearn_u", **objective) -> BigLearnTask:
    return BigLearnTask(small_model(method, "query_only"), ObjectiveConfig(groups=4, **objective), seed)


def batch() -> Batch:
    return Batch(images(8), torch.arange(8) + 40)


def test_the_vae_trains_the_joint_task_alone():
    assert task_of(method="vae").plans == (Plan(((0, L),)),)
    assert len(task_of(method="biglearn_t").plans) == 16


def test_loss_weighs_the_kl_with_beta():
    for beta in (0.01, 0.5):
        loss, terms = task_of()(batch(), PLAN, beta=beta)
        assert loss.item() == pytest.approx(-(terms["reconstruction"] - beta * terms["kl"]).item(), rel=1e-6)
        assert terms["elbo"] == -terms["loss"]


def test_terms_by_task_are_means_over_the_groups_of_that_task():
    task = task_of()
    _, terms = task(batch(), PLAN, beta=BETA)
    for name, groups in (("joint", [0, 3]), ("marginal", [1]), ("conditional", [2])):
        alone = []
        for g in groups:
            of_group = Batch(images(8)[2 * g : 2 * g + 2], torch.arange(2) + 40 + 2 * g)
            alone.append(task(of_group, Plan((PLAN.groups[g],)), beta=BETA)[1]["elbo"])
        assert terms[f"elbo_{name}"].item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)
    _, terms = task(batch(), Plan(((0, 5), (6, 4))), beta=BETA)
    assert "elbo_joint" not in terms


def test_masks_and_noise_follow_the_seed_and_the_position():
    first, other = task_of(seed=0)(batch(), PLAN, beta=BETA)[0], task_of(seed=1)(batch(), PLAN, beta=BETA)[0]
    assert first != other
    moved = Batch(images(8), torch.arange(8) + 48)
    assert task_of(seed=0)(moved, PLAN, beta=BETA)[0] != first
    joint = Plan(((0, L),))  # no mask moves here: what differs is the noise
    assert task_of(seed=0)(batch(), joint, beta=BETA)[0] != task_of(seed=1)(batch(), joint, beta=BETA)[0]
    assert task_of(seed=0)(moved, joint, beta=BETA)[0] != task_of(seed=0)(batch(), joint, beta=BETA)[0]


@pytest.mark.parametrize("method", ["vae", "biglearn_u"])
def test_evaluation_does_not_depend_on_the_seed_of_the_run(method):
    one, other = task_of(seed=0, method=method).evaluate(batch()), task_of(seed=1, method=method).evaluate(batch())
    for name in one:
        assert torch.equal(one[name], other[name])


def test_joint_elbo_is_equation_1():
    task, x_BLD = task_of(), batch().x_BLD
    nothing_BL = torch.zeros(8, L, dtype=torch.bool)
    noise_BZ = randomness.normal(EVALUATION_SEED, "noise", batch().index_B, Z)
    for name, standard in (("joint_elbo", False), ("joint_elbo_standard_prior", True)):
        terms = elbo_terms(task.model, x_BLD, nothing_BL, ~nothing_BL, noise_BZ)
        terms = terms.with_prior(Gaussian.standard(noise_BZ)) if standard else terms
        torch.testing.assert_close(task.evaluate(batch())[name], terms.elbo_B(0.01))


@pytest.mark.parametrize("name", INPAINTING_ERRORS)
def test_in_painting_error_is_that_of_the_missing_patches_from_the_others(name):
    task, x_BLD, index_B = task_of(), batch().x_BLD, batch().index_B
    if name in ("inpainting_error", "inpainting_error_fifth"):
        n_S_B = torch.full((8,), L // 2 if name == "inpainting_error" else L // 5)
        seen_BL, missing_BL = place_masks(n_S_B, L - n_S_B, index_B, L, EVALUATION_SEED)
    else:
        missing_NN = torch.zeros(4, 4, dtype=torch.bool)
        missing_NN[(slice(1, 3), slice(1, 3)) if name == "inpainting_error_block" else slice(2, 4)] = True
        missing_BL = missing_NN.flatten().expand(8, -1)
    seen_BL = ~missing_BL
    hidden_BLD = x_BLD * seen_BL[..., None]  # the model gets nothing of the others
    painted_BLD = task.model.decode(task.model.encode(hidden_BLD, seen_BL)[0], hidden_BLD, seen_BL)
    expected_B = [(painted_BLD - x_BLD)[b][missing_BL[b]].square().mean().item() for b in range(8)]
    assert task.inpainting_errors(batch())[name].tolist() == pytest.approx(expected_B, rel=1e-5)


def test_elbos_at_the_reference_are_those_of_a_model_that_was_trained_with_it():
    one, other = task_of(beta=0.5).evaluate(batch()), task_of(beta=0.01).evaluate(batch())
    for name in ("biglearn_elbo", "joint_elbo", "joint_elbo_standard_prior"):
        assert torch.equal(one[f"{name}_at_0.01"], other[name])
        assert (one[name] < other[name]).all()


@pytest.fixture
def stage_1():
    """stage_1(patches_per_image): the task, and a batch of images of four patches."""
    torch.manual_seed(0)
    model, batch = PatchAutoencoder(), Batch(torch.rand(2, 4, 768), torch.arange(2))
    return lambda patches: (PatchAETask(model, PatchAEConfig(patches_per_image=patches), seed=0), batch)


def reconstructed(task, x_BLD):
    return task.model.decode(task.model.encode(x_BLD.flatten(0, 1))).view_as(x_BLD)


def test_patch_autoencoder_is_scored_by_the_error_of_a_pixel(stage_1):
    task, batch = stage_1(4)
    error_BLD = (reconstructed(task, batch.x_BLD) - batch.x_BLD).square()
    assert task(batch, task.plans[0], beta=0.0)[0].item() == pytest.approx(error_BLD.mean().item(), rel=1e-5)
    found = task.evaluate(batch)
    assert found["mse"].tolist() == pytest.approx(error_BLD.mean((1, 2)).tolist(), rel=1e-5)


def test_psnr_is_that_of_the_picture_that_people_see(stage_1, monkeypatch):
    task, batch = stage_1(4)
    monkeypatch.setattr(task.model, "decode", lambda code_NC: torch.rand(len(code_NC), 768) * 3 - 1)
    torch.manual_seed(1)
    found_B = task.evaluate(batch)["psnr"]
    torch.manual_seed(1)
    shown_BLD = (torch.rand(8, 768) * 3 - 1).clamp(0, 1).view_as(batch.x_BLD)
    expected = [
        peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1) for x, y in zip(batch.x_BLD, shown_BLD, strict=True)
    ]
    assert found_B.tolist() == pytest.approx(expected, rel=1e-5)


def test_stage_1_trains_on_some_patches_of_each_image_which_follow_from_its_index(stage_1):
    task, batch = stage_1(2)
    error_BL = (reconstructed(task, batch.x_BLD) - batch.x_BLD).square().mean(2)
    pairs = {(i, j): (error_BL[0, i] + error_BL[0, j]).item() / 2 for i in range(4) for j in range(i)}

    def drawn(index):
        one = Batch(batch.x_BLD[:1], torch.tensor([index]))
        value = task.sample_terms(one, task.plans[0], beta=0.0)["mse"].item()
        return min(pairs, key=lambda pair: abs(pairs[pair] - value))

    first = [drawn(index) for index in range(30)]
    assert first == [drawn(index) for index in range(30)]
    assert set(first) == set(pairs)  # every pair of patches, sooner or later
