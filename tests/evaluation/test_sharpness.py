"""What a classifier makes of fillings, and what fillings cost."""

import pytest
import torch

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.find_images import open_images
from biglearn_vae.images import open_stream
from biglearn_vae.pictures import read_images
from evaluation import chains
from evaluation.chains import fillings_and_times
from evaluation.sharpness import frechet_distance, sharpness, train_judge
from model.masks import STANDARD_MASKS
from model.method import METHODS


@pytest.fixture(scope="module")
def vae(digits_run):
    return BigLearnVAE.load(digits_run)


@pytest.fixture(scope="module")
def streams(vae, digits_run):
    data, index = open_images(vae.description, digits_run)
    return [open_stream(data, index, split, None, torch.device("cpu")) for split in ("train", "test")]


@pytest.fixture(scope="module")
def judge(streams):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.sharpness._SEEN_IMAGES", 12_000)
        return train_judge(streams[0], 10)


def test_the_frechet_distance_is_that_of_two_gaussians():
    generator = torch.Generator().manual_seed(0)
    x_NF = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    other_NF = x_NF * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    assert frechet_distance(x_NF, other_NF) == pytest.approx(1 + 4 + 4 + 0.25, rel=0.02)
    assert frechet_distance(x_NF, x_NF) == pytest.approx(0, abs=1e-6)


def test_the_judge_tells_digits_and_punishes_a_blur(vae, streams, judge, world):
    _, test = streams

    def whole(given, first_index):  # a filler that knows the answer
        return read_images(test, torch.arange(first_index, first_index + len(given)))[None]

    def grey(given, first_index):
        return given.complete(torch.full_like(given.images_BHWC, 0.5))[None]

    rows = sharpness(vae, {"the answer": whole, "grey": grey}, judge, test, world, 100, 0)
    by = {(row["of"], row["way"]): row for row in rows}
    assert by["test images", ""]["accuracy"] > 0.85
    assert by["samples", ""]["accuracy"] is None
    assert by["samples", ""]["frechet"] > 0
    for mask in STANDARD_MASKS:
        assert by[mask, "the answer"]["accuracy"] == by["test images", ""]["accuracy"]
        assert by[mask, "the answer"]["frechet"] < 1e-3
        assert by[mask, "grey"]["frechet"] > 1
        assert by[mask, "grey"]["accuracy"] < by["test images", ""]["accuracy"]


def test_the_judge_is_always_the_same(streams, monkeypatch):
    monkeypatch.setattr("evaluation.sharpness._SEEN_IMAGES", 128)
    judge, before = train_judge(streams[0], 10), torch.get_rng_state()
    again = train_judge(streams[0], 10)
    assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(judge.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_filling_is_the_mean_of_draws_and_costs_more_with_more_of_them(vae, streams, world):
    rows = fillings_and_times(vae, streams[1], torch.zeros(32, 32, 3), world, 60, 0)
    assert {(row["way"], row["draws"]) for row in rows} == {("in-painting", 1), ("in-painting", 16)}
    for mask in STANDARD_MASKS:
        one, sixteen = (row for row in rows if row["mask"] == mask)
        assert sixteen["error"] < one["error"]
        assert sixteen["seconds"] > one["seconds"] > 0


def test_the_filling_of_a_chain_is_the_mean_over_its_second_half(vae, streams, world, monkeypatch):
    class Joint:
        """Its k-th state, 10 steps after the one before, is off by 1 / k."""

        method, description = METHODS["vae"], vae.description
        observe = vae.observe

        def pseudo_gibbs(self, given, *, draws, burn_in, steps, start_HWC, metropolis, seed, first_index):
            assert (draws, burn_in, steps) == (10, 0, 10)
            return torch.stack([given.complete(truth_BHWC + 1 / k) for k in range(1, draws + 1)])

    monkeypatch.setattr(chains, "STEPS", (10, 100))
    truth_BHWC = read_images(streams[1], torch.arange(20))
    rows = fillings_and_times(Joint(), streams[1], torch.zeros(32, 32, 3), world, 20, 0)
    assert len(rows) == len(chains.CHAINS) * len(STANDARD_MASKS) * 2
    for way in chains.CHAINS:
        for mask in STANDARD_MASKS:
            short, long = (row for row in rows if (row["way"], row["mask"]) == (way, mask))
            assert (short["steps"], long["steps"]) == (10, 100)
            assert short["error"] == pytest.approx(1, rel=1e-4)
            assert long["error"] == pytest.approx((sum(1 / k for k in range(6, 11)) / 5) ** 2, rel=1e-4)
            assert long["seconds"] == pytest.approx(10 * short["seconds"])
