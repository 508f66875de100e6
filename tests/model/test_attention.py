"""Who attends to whom in `query_only`: the table of docs/mathematics.md, row by row."""

import torch

from model.attention import decode_allowed, encode_allowed

OBSERVED = torch.tensor([[True, False, True, False]])  # x_S at places 0 and 2; the token of z is place 4
S, MISSING, Z = [0, 2], [1, 3], 4


def keys(allowed_BQK: torch.Tensor, query: int) -> list[int]:
    return allowed_BQK[0, query].nonzero().flatten().tolist()


def test_encode():
    allowed = encode_allowed(OBSERVED)
    for query in S:
        assert keys(allowed, query) == S
    assert keys(allowed, Z) == [*S, Z]
    for key in MISSING:  # nobody reads a mask token, but itself
        assert allowed[0, :, key].nonzero().flatten().tolist() == [key]


def test_decode():
    allowed = decode_allowed(OBSERVED)
    for query in S:
        assert keys(allowed, query) == S  # never z
    assert keys(allowed, Z) == [*S, Z]
    for query in MISSING:
        assert keys(allowed, query) == [*S, Z]  # not itself, not one another


def test_nothing_observed_leaves_no_row_empty():
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert keys(encode_allowed(nothing), Z) == [Z]
    for query in range(5):
        assert keys(decode_allowed(nothing), query) == [Z]
