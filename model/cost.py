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

    tokens_per_image: tokens that enter a trunk. token_layers_per_image: tokens that leave a layer, over all layers;
    of others only keys and values are computed. flops_per_image: floating-point operations of the matrix products
    of forward and backward.
    """

    tokens_per_image: float
    token_layers_per_image: float
    flops_per_image: float


def measure_cost(task: nn.Module, patches: int, token_dim: int) -> Cost:
    """Run every plan of `task`, which must live on the meta device, forward and backward once."""
    tokens = token_layers = 0

    def enters(norm: nn.Module, inputs) -> None:
        nonlocal tokens
        tokens += inputs[0].shape[:-1].numel()

    def leaves(norm: nn.Module, inputs) -> None:
        nonlocal token_layers
        token_layers += inputs[0].shape[:-1].numel()

    trunks = [module for module in task.modules() if isinstance(module, Trunk)]
    hooks = [trunk.blocks[0].norm1.register_forward_pre_hook(enters) for trunk in trunks]
    hooks += [block.norm2.register_forward_pre_hook(leaves) for trunk in trunks for block in trunk.blocks]
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
