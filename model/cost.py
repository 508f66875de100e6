"""What a step costs, counted from what the code really computes, on tensors without storage."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data.batch import Batch
from model.transformer import Trunk


@dataclass(frozen=True)
class Cost:
    """For one training image, mean over the cycle of plans.

    tokens_per_image: tokens that enter a trunk. token_layers_per_image: tokens times the layers they go through.
    flops_per_image: floating-point operations of the matrix products of forward and backward.
    """

    tokens_per_image: float
    token_layers_per_image: float
    flops_per_image: float


def measure_cost(task: nn.Module, patches: int, token_dim: int) -> Cost:
    """Run every plan of `task`, which must live on the meta device, forward and backward once."""
    tokens = token_layers = 0

    def count(trunk: Trunk, inputs) -> None:
        nonlocal tokens, token_layers
        tokens += inputs[0].shape[0] * inputs[0].shape[1]
        token_layers += inputs[0].shape[0] * inputs[0].shape[1] * len(trunk.blocks)

    hooks = [m.register_forward_pre_hook(count) for m in task.modules() if isinstance(m, Trunk)]
    images = flops = 0
    with torch.device("meta"):
        for plan in task.plans:
            batch_size = len(plan.groups)
            batch = Batch(torch.empty(batch_size, patches, token_dim), torch.arange(batch_size))
            with FlopCounterMode(display=False) as counter:
                loss, _ = task(batch, plan)
                loss.backward()
            images += batch_size
            flops += counter.get_total_flops()
    for hook in hooks:
        hook.remove()
    return Cost(tokens / images, token_layers / images, flops / images)
