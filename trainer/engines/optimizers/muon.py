"""Muon (Jordan et al. 2024): momentum, made orthogonal.

Each matrix moves by about U Vᵀ of the singular value decomposition U S Vᵀ of its momentum, so that all directions of
a layer move equally far. Five steps of a Newton-Schulz iteration give it by matrix products alone, with singular
values between 0.68 and 1.13 instead of 1, those far below the largest one excepted.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.optimizers.pieces import Pieces
from trainer.engines.optimizers.rule import Params, Rule, States

STEPS = 5
A, B, C = 3.4445, -4.7750, 2.0315  # of the polynomial a x + b x³ + c x⁵, steep at 0
LONG = 4  # so many times as long as high: products of the short side alone are fewer operations


class Muon(Rule):
    """On whole matrices, whatever the ranks hold of them; each rank makes its share of them orthogonal.

    dtype: of the iteration.
    """

    MOMENTS = ("exp_avg",)

    def __init__(self, config: OptimizerConfig, dtype: torch.dtype):
        muon = config.muon
        self.learning_rate, self.weight_decay = muon.learning_rate, muon.weight_decay
        self._momentum, self._dtype = muon.momentum, dtype

    def step(
        self, params: Params, states: States, pieces: Sequence[Pieces], lr: Tensor | float, decay: float, skip: Tensor
    ) -> None:
        momenta = [state["exp_avg"] for state in states]
        # The gradients of a skipped step may not be finite, and 0 times infinity is no number.
        is_skipped = skip.bool()
        gradients = [torch.where(is_skipped, m, p.grad) for p, m in zip(params, momenta, strict=True)]
        torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)
        directions = torch._foreach_lerp(gradients, momenta, self._momentum)  # Nesterov's
        wholes = [piece.gather(d.to(self._dtype)) for piece, d in zip(pieces, directions, strict=True)]
        orthogonal = iter(orthogonalise([whole for of_param in wholes for whole in of_param]))
        rate = lr * (1 - skip)
        if decay:
            torch._foreach_mul_(params, 1 - rate * decay)
        for p, piece, of_param in zip(params, pieces, wholes, strict=True):
            update = piece.scatter([next(orthogonal) for _ in of_param], p)
            p.addcmul_(update.to(p.dtype), rate, value=-1)


def orthogonalise(wholes: Sequence[Tensor]) -> list[Tensor]:
    """For tensors (matrices, rows, columns) the U Vᵀ of each matrix, times sqrt(max(1, rows / columns)).

    Every rank gives the same tensors and gets all results. Matrices of one shape are one batch, of which each rank
    takes an equal share.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, whole in enumerate(wholes):
        by_shape[whole.shape[1:]].append(number)
    found: dict[int, Tensor] = {}
    for (rows, columns), numbers in by_shape.items():
        batch_NRC = torch.cat([wholes[number] for number in numbers])
        made_NRC = _shared(batch_NRC)
        if rows > columns:
            made_NRC = made_NRC * (rows / columns) ** 0.5
        found |= zip(numbers, made_NRC.split([len(wholes[number]) for number in numbers]), strict=True)
    return [found[number] for number in range(len(wholes))]


def _shared(batch_NRC: Tensor) -> Tensor:
    """`newton_schulz` of a batch that all ranks have, each rank computing its share."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return newton_schulz(batch_NRC)
    world_size, count = dist.get_world_size(), len(batch_NRC)
    if world_size > 2 * count:  # most ranks make none: a sum with their zeros is shorter than what all would give
        mine = slice(dist.get_rank(), dist.get_rank() + 1)
        made_NRC = torch.zeros_like(batch_NRC)
        made_NRC[mine] = newton_schulz(batch_NRC[mine])
        dist.all_reduce(made_NRC)
        return made_NRC
    share = -(-count // world_size)
    padded_NRC = torch.cat([batch_NRC, batch_NRC.new_zeros(share * world_size - count, *batch_NRC.shape[1:])])
    mine_NRC = newton_schulz(padded_NRC[dist.get_rank() * share :][:share]).contiguous()  # NCCL takes nothing else
    dist.all_gather_into_tensor(padded_NRC, mine_NRC)
    return padded_NRC[:count]


def newton_schulz(g_NRC: Tensor) -> Tensor:
    """About U Vᵀ of each matrix of a batch (N, rows, columns), in its dtype; zeros of zeros."""
    is_tall = g_NRC.shape[1] > g_NRC.shape[2]
    x_NRC = g_NRC.mT if is_tall else g_NRC
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    is_long = x_NRC.shape[2] >= LONG * x_NRC.shape[1] and x_NRC.dtype == torch.float32
    x_NRC = _iterate_long(x_NRC) if is_long else _iterate(x_NRC)
    return x_NRC.mT if is_tall else x_NRC


def _iterate(x_NRC: Tensor) -> Tensor:
    for _ in range(STEPS):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=B, alpha=C)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=A)
    return x_NRC


def _iterate_long(x_NRC: Tensor) -> Tensor:
    """The same in 2 instead of 10 products with the long side. Not for bf16: a Gram matrix squares what is small."""
    gram_NRR = x_NRC @ x_NRC.mT
    product_NRR = torch.eye(gram_NRR.shape[1], device=gram_NRR.device).expand_as(gram_NRR)
    for _ in range(STEPS):
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=B, alpha=C)
        factor_NRR.diagonal(dim1=1, dim2=2).add_(A)
        product_NRR = factor_NRR @ product_NRR
        gram_NRR = factor_NRR @ gram_NRR @ factor_NRR
    return product_NRR @ x_NRC
