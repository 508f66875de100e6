"""What a step costs, counted from what the code really computes, on tensors without storage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data.batch import Batch
from model.masks import Plan
from model.transformer import Trunk
from trainer.tasks.task import Task


@dataclass(frozen=True)
class Cost:
    """For one training image, mean over the cycle of plans.

    tokens_per_image: tokens that enter a trunk. token_layers_per_image: tokens that leave a layer, over all layers;
    of others only keys and values are computed. flops_per_image: floating-point operations of the matrix products
    of forward and backward.
    """

    tokens_per_image: float
    token_layers_per_image: float
    flops_per_image: float


def measure_cost(task: Task, patches: int, token_dim: int) -> Cost:
    """The cost of the plans of `task`, which must live on the meta device.

    Mask groups share nothing but p(z), the prior of all that observe nothing, and attention makes the cost of a group
    a quadratic polynomial in |S| and |T|. So a few groups are run forward and backward, and give those of all others.
    """

    def measure(plan: Plan) -> np.ndarray:
        return _measure(task, plan, patches, token_dim)

    n_groups = sum(len(plan.groups) for plan in task.plans)
    if n_groups <= len(_POINTS) or patches < 4:
        total = sum(measure(plan) for plan in task.plans)
    else:
        nothing, twice = measure(Plan(((0, 1),))), measure(Plan(((0, 1), (0, 1))))
        shared = 2 * nothing - twice
        empty = _polynomial({(0, n_T): measure(Plan(((0, n_T),))) - shared for n_T in (1, 2, 3)})
        observes = any(n_S for plan in task.plans for n_S, _ in plan.groups)  # with a fixed prior none does
        observing = _polynomial({group: measure(Plan((group,))) for group in _POINTS}) if observes else empty
        total = sum(
            (observing if n_S else empty)(n_S, n_T) for plan in task.plans for n_S, n_T in plan.groups
        ) + shared * sum(any(not n_S for n_S, _ in plan.groups) for plan in task.plans)
    return Cost(*(np.round(total) / n_groups).tolist())  # they are whole numbers


_POINTS = ((1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (3, 1))


def _polynomial(value_of: dict[tuple[int, int], np.ndarray]) -> Callable[[int, int], np.ndarray]:
    """The quadratic polynomial through these values."""

    def monomials(n_S: int, n_T: int) -> np.ndarray:
        return np.array([1, n_S, n_T, n_S * n_S, n_S * n_T, n_T * n_T], dtype=float)

    points, values = zip(*value_of.items(), strict=True)
    coefficients, *_ = np.linalg.lstsq(np.stack([monomials(*point) for point in points]), np.stack(values))
    return lambda n_S, n_T: monomials(n_S, n_T) @ coefficients


def _measure(task: Task, plan: Plan, patches: int, token_dim: int) -> np.ndarray:
    """Tokens, token-layers and operations of one sample of each group, counted while it runs."""
    tokens = token_layers = 0

    def enters(norm: nn.Module, inputs: Any) -> None:
        nonlocal tokens
        tokens += inputs[0].shape[:-1].numel()

    def leaves(norm: nn.Module, inputs: Any) -> None:
        nonlocal token_layers
        token_layers += inputs[0].shape[:-1].numel()

    trunks = [module for module in task.modules() if isinstance(module, Trunk)]
    hooks = [trunk.blocks[0].norm1.register_forward_pre_hook(enters) for trunk in trunks]
    hooks += [block.norm2.register_forward_pre_hook(leaves) for trunk in trunks for block in trunk.blocks]
    batch_size = len(plan.groups)
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with torch.device("meta"), counter:
        batch = Batch(torch.empty(batch_size, patches, token_dim), torch.arange(batch_size))
        loss, _ = task(batch, plan, beta=1.0)
        loss.backward()
    for hook in hooks:
        hook.remove()
    return np.array([tokens, token_layers, counter.get_total_flops()], dtype=float)


class _NoModules:
    """Instead of torch's tracker of modules, whose hooks are on those of all threads, a training's too."""

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass
