import math
import zlib

import numpy as np
import pytest
import torch
from scipy import stats

from data.randomness import keyed_permutation, normal, permutation, random_bits, uniform

MANY = torch.arange(20_000)
GOLDEN_BITS = [[4136607561205992379, 5970600448991636037], [2244696745922003538, -6361161536353429220]]
GOLDEN_BITS_OF_7 = {  # by seed and purpose
    (11, "noise"): [6085135251704455492, 4436528650639728897],
    (-1, "masks"): [7021549601594086133, -431653699220329552],
    (2**63 - 1, "order"): [-1060269653504368372, -3684249905640135507],
    (2**64 + 5, "a"): [8428683180878681171, -1594068234557780076],
}
GOLDEN_PERMUTATION = [[1, 4, 6, 7, 0, 5, 3, 2]]
GOLDEN_UNIFORM = [[0.4456701874732971, 0.20304721593856812]]
GOLDEN_KEYED = [[0, 5, 3, 7, 2, 1, 4, 6], [5, 4, 1, 7, 2, 3, 0, 6]]
GOLDEN_NORMAL = [[1.7058244943618774, -0.12161222100257874, 2.121614694595337]]


def test_golden_values():
    """Every run ever made depends on these: a change is a change of all results."""
    assert random_bits(0, "order", torch.tensor([0, 1]), 2).tolist() == GOLDEN_BITS
    for (seed, purpose), bits in GOLDEN_BITS_OF_7.items():
        assert random_bits(seed, purpose, torch.tensor([7]), 2).tolist() == [bits]
    assert permutation(3, "mask", torch.tensor([5]), 8).tolist() == GOLDEN_PERMUTATION
    assert uniform(1, "u", torch.tensor([7]), 2).tolist() == GOLDEN_UNIFORM
    torch.testing.assert_close(normal(1, "noise", torch.tensor([2**40]), 3), torch.tensor(GOLDEN_NORMAL))


def test_the_bits_are_those_of_splitmix64():
    """Against the published finaliser in Python's unbounded integers."""

    def mix(bits):
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        return bits ^ bits >> 31

    golden = 0x9E3779B97F4A7C15
    key = mix((11 * golden + zlib.crc32(b"noise")) % 2**64)
    for index in (0, 1, 12_345, 2**40):
        sample = mix((key + (index + 1) * golden) % 2**64)
        expected = [mix((sample + (draw + 1) * golden) % 2**64) for draw in range(5)]
        found = random_bits(11, "noise", torch.tensor([index]), 5)[0]
        assert [bits % 2**64 for bits in found.tolist()] == expected


@pytest.mark.parametrize("draw", [random_bits, uniform, normal, permutation])
def test_a_sample_does_not_depend_on_its_batch(draw):
    together = draw(5, "noise", torch.arange(100), 64)
    shuffled = torch.randperm(100)
    assert torch.equal(draw(5, "noise", shuffled, 64), together[shuffled])
    assert torch.equal(draw(5, "noise", torch.tensor([42]), 64)[0], together[42])


def test_fewer_bits_are_the_first_of_more():
    assert torch.equal(random_bits(1, "a", MANY, 3), random_bits(1, "a", MANY, 7)[:, :3])


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_seed_purpose_and_index_give_unrelated_numbers(other):
    seed, purpose, shift = other
    one, two = uniform(0, "a", MANY, 8), uniform(seed, purpose, MANY + shift, 8)
    assert abs(stats.pearsonr(one.flatten(), two.flatten()).statistic) < 4 / math.sqrt(one.numel())
    assert not torch.equal(one, two)


def test_draws_of_one_sample_are_unrelated():
    correlation = torch.corrcoef(uniform(0, "a", MANY, 8).T) - torch.eye(8)
    assert correlation.abs().max() < 4.5 / math.sqrt(len(MANY))


def test_every_bit_is_fair():
    bits_BN = random_bits(9, "a", MANY, 4)
    share_of_ones = torch.stack([(bits_BN >> bit & 1).float().mean() for bit in range(64)])
    assert (share_of_ones - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(bits_BN.numel())


def test_uniform_is_uniform_in_the_open_interval():
    u_BN = uniform(0, "a", MANY, 16)
    assert u_BN.dtype == torch.float32
    assert 0 < u_BN.min() <= u_BN.max() < 1
    assert stats.kstest(u_BN.flatten(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_normal_is_normal(count):
    z_BN = normal(0, "noise", MANY, count)
    assert z_BN.shape == (len(MANY), count)
    assert z_BN.isfinite().all()
    assert stats.kstest(z_BN.flatten(), "norm").pvalue > 1e-3
    covariance = torch.cov(z_BN.T).reshape(count, count)
    assert (covariance - torch.eye(count)).abs().max() < 6 / math.sqrt(len(MANY))


def test_permutations_are_permutations_and_all_equally_likely():
    order_BN = permutation(0, "mask", MANY, 4)
    assert torch.equal(order_BN.sort(dim=1).values, torch.arange(4).expand(len(MANY), 4))
    _, counts = (order_BN * torch.tensor([64, 16, 4, 1])).sum(dim=1).unique(return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_any_integer_is_a_seed():
    for seed in (-1, 0, 2**63, 2**64 + 5):
        assert random_bits(seed, "a", torch.tensor([0]), 1).shape == (1, 1)
    assert not torch.equal(random_bits(-1, "a", MANY, 1), random_bits(1, "a", MANY, 1))


def permuted(count, keys, seed=0):
    """(keys, count): where the permutation of each key sends each place."""
    key_B, place_B = torch.arange(keys).repeat_interleave(count), torch.arange(count).repeat(keys)
    return keyed_permutation(seed, "k", key_B, place_B, torch.full_like(place_B, count)).view(keys, count)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 100, 255, 256, 257, 5000])
def test_a_keyed_permutation_has_every_place_once(count):
    for row_N in permuted(count, 3):
        assert row_N.sort().values.tolist() == list(range(count))


def test_keyed_permutations_are_golden():
    assert permuted(8, 2).tolist() == GOLDEN_KEYED


@pytest.mark.parametrize("count", [4, 5])
def test_every_permutation_of_a_few_is_as_likely_as_any_other(count):
    many = math.factorial(count)
    weight_N = count ** torch.arange(count)
    counts = (permuted(count, 200 * many) * weight_N).sum(1).unique(return_counts=True)[1]
    assert len(counts) == many
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_a_keyed_permutation_of_many_places_leaves_no_trace_of_its_order():
    count, place_B = 10**9, torch.arange(20_000)
    sent_B = keyed_permutation(0, "k", torch.zeros_like(place_B), place_B, torch.full_like(place_B, count))
    assert stats.kstest(sent_B.numpy() / count, "uniform").pvalue > 1e-3
    assert stats.kstest(sent_B.diff().numpy() % count / count, "uniform").pvalue > 1e-3
    other_B = keyed_permutation(0, "k", torch.ones_like(place_B), place_B, torch.full_like(place_B, count))
    assert abs(np.corrcoef(sent_B, other_B)[0, 1]) < 0.03
