"""What ranks hold of matrices, without the ranks: each of them in turn, and what an all-gather would bring."""

import pytest
import torch

from trainer.engines.optimizers import pieces
from trainer.engines.optimizers.pieces import Contiguous, Interleaved

SHAPES = [(3, 4, 5), (1, 7, 3)]  # 60 and 21 values: no number of ranks here divides both


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("kind", [Contiguous, Interleaved])
def test_pieces_of_all_ranks_make_up_the_matrices(monkeypatch, kind, world_size):
    torch.manual_seed(0)
    wholes, held = [torch.randn(shape) for shape in SHAPES], []
    monkeypatch.setattr(pieces.dist, "get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(pieces.dist, "get_rank", lambda rank=rank: rank)
        size = sum(-(-whole.numel() // world_size) for whole in wholes)  # as each of the two pads, and more
        held.append(kind(SHAPES).scatter(wholes, torch.empty(size)))
    monkeypatch.setattr(pieces, "_gather", lambda mine: torch.stack(held))
    for found, whole in zip(kind(SHAPES).gather(held[0]), wholes, strict=True):
        torch.testing.assert_close(found, whole, rtol=0, atol=0)
    if kind is Contiguous:  # one after the other over the ranks
        torch.testing.assert_close(torch.cat(held)[:81], torch.cat([whole.flatten() for whole in wholes]))
    else:  # every rank has of each
        first = -(-60 // world_size)
        torch.testing.assert_close(torch.cat([of_rank[:first] for of_rank in held])[:60], wholes[0].flatten())
