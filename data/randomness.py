"""Randomness without state: every draw is a pure function of (seed, purpose, index).

A counter-based generator (the SplitMix64 finaliser applied to a key and a counter) gives each sample its own
numbers whatever the batch, the rank, the worker or the library version that asks for them.
"""

import math
import zlib
from functools import cache

import numpy as np
import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)
_ALL = 2**64 - 1
_LEAST_BITS = 7  # below, too few permutations are within reach
_TURNS = 8  # of a Feistel network; four make it pseudo-random, small ones want more


def _shift(bits: Tensor | int, count: int) -> Tensor | int:
    """Logical right shift of 64 bits: torch's >> on int64 keeps the sign."""
    return (bits >> count) & (2 ** (64 - count) - 1)


def _mix(bits: Tensor | int) -> Tensor | int:
    """For a Python integer, which has more bits, right modulo 2^64."""
    bits = (bits ^ _shift(bits, 30)) * _MIX_1
    bits = (bits ^ _shift(bits, 27)) * _MIX_2
    return bits ^ _shift(bits, 31)


@cache
def _key(seed: int, purpose: str) -> int:
    """A Python integer, because a tensor would have to be sent to the device, for which the host waits."""
    return _signed(_mix(seed * _GOLDEN + zlib.crc32(purpose.encode())))


def random_bits(seed: int | Tensor, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """64 random bits for each of `count` draws of each sample: (B, count) int64 on the device of index_B.

    seed: of all samples, or (B,) int64, of each its own.
    """
    key = _key(seed, purpose) if isinstance(seed, int) else _mix(seed * _GOLDEN + zlib.crc32(purpose.encode()))
    sample_B = _mix((index_B + 1) * _GOLDEN + key)
    counter_N = torch.arange(1, count + 1, device=index_B.device) * _GOLDEN
    return _mix(sample_B[:, None] + counter_N)


def uniform(seed: int | Tensor, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """(B, count) float32, uniform in the open interval (0, 1) on a grid of 2^-24."""
    return (_shift(random_bits(seed, purpose, index_B, count), 41).float() + 0.5) * 2.0**-23


def normal(seed: int | Tensor, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """(B, count) float32 standard normal draws, by the Box-Muller transform."""
    half = (count + 1) // 2
    u_BN = uniform(seed, purpose, index_B, 2 * half)
    radius, angle = (-2.0 * u_BN[:, :half].log()).sqrt(), 2.0 * math.pi * u_BN[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def permutation(seed: int, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """(B, count) int64: for each sample a uniformly random permutation of 0 .. count-1."""
    return random_bits(seed, purpose, index_B, count).argsort(dim=1, stable=True)


def keyed_permutation(seed: int, purpose: str, key_B: Tensor, place_B: Tensor, count_B: Tensor) -> Tensor:
    """Where a permutation of 0 .. count-1, of each key another one, sends each place: (B,) int64 on the CPU.

    All (B,) int64, 0 <= place < count < 2^62. Time and memory of a place do not depend on the count: a Feistel network
    over an even number of bits (Luby and Rackoff 1988), walked until it is below the count again, which takes less than
    four passes on average (Black and Rogaway 2002).
    """
    key_B = _mix((key_B + 1) * _GOLDEN + _key(seed, purpose)).numpy().view(np.uint64)
    place_B, count_B = (x_B.numpy().view(np.uint64) for x_B in (place_B, count_B))
    half_B = (np.frexp((count_B - 1).astype(np.longdouble))[1].clip(_LEAST_BITS) + 1).astype(np.uint64) // 2
    result_B = place_B.copy()
    walking_N = np.arange(len(place_B))
    while len(walking_N):
        key_N, half_N, place_N = key_B[walking_N], half_B[walking_N], result_B[walking_N]
        mask_N = (np.uint64(1) << half_N) - np.uint64(1)
        left_N, right_N = place_N >> half_N, place_N & mask_N
        for turn in range(1, _TURNS + 1):
            bits_N = (right_N + np.uint64(turn) * np.uint64(2**32)) * np.uint64(_GOLDEN & _ALL) ^ key_N
            bits_N = (bits_N ^ (bits_N >> np.uint64(30))) * np.uint64(_MIX_1 & _ALL)
            bits_N = (bits_N ^ (bits_N >> np.uint64(27))) * np.uint64(_MIX_2 & _ALL)
            left_N, right_N = right_N, left_N ^ ((bits_N >> np.uint64(31)) & mask_N)
        place_N = (left_N << half_N) | right_N
        result_B[walking_N] = place_N
        walking_N = walking_N[place_N >= count_B[walking_N]]
    return torch.from_numpy(result_B.view(np.int64))
