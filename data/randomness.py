"""Randomness without state: every draw is a pure function of (seed, purpose, index).

A counter-based generator (the SplitMix64 finaliser applied to a key and a counter) gives each sample its own
numbers whatever the batch, the rank, the worker or the library version that asks for them.
"""

import math
import zlib
from functools import cache

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


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


def random_bits(seed: int, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """64 random bits for each of `count` draws of each sample: (B, count) int64 on the device of index_B."""
    sample_B = _mix((index_B + 1) * _GOLDEN + _key(seed, purpose))
    counter_N = torch.arange(1, count + 1, device=index_B.device) * _GOLDEN
    return _mix(sample_B[:, None] + counter_N)


def uniform(seed: int, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """(B, count) float32, uniform in the open interval (0, 1) on a grid of 2^-24."""
    return (_shift(random_bits(seed, purpose, index_B, count), 41).float() + 0.5) * 2.0**-23


def normal(seed: int, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """(B, count) float32 standard normal draws, by the Box-Muller transform."""
    half = (count + 1) // 2
    u_BN = uniform(seed, purpose, index_B, 2 * half)
    radius, angle = (-2.0 * u_BN[:, :half].log()).sqrt(), 2.0 * math.pi * u_BN[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def permutation(seed: int, purpose: str, index_B: Tensor, count: int) -> Tensor:
    """(B, count) int64: for each sample a uniformly random permutation of 0 .. count-1."""
    return random_bits(seed, purpose, index_B, count).argsort(dim=1, stable=True)
