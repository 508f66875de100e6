"""AdamW with an exponential moving average of the weights, and the learning-rate schedule."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data.section import Section


class OptimizerConfig(Section):
    """AdamW as in the paper's appendix, and the EMA of the weights that evaluation uses."""

    learning_rate: float = Field(1e-4, gt=0)
    beta1: float = Field(0.0, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)  # on matrices only
    ema_halflife_images: int = Field(500_000, ge=0)  # 0: evaluation uses the weights themselves
    ema_rampup: float = Field(0.05, gt=0)  # the half-life is at most this share of the images seen so far


class ScheduleConfig(Section):
    """The learning rate rises linearly over warmup_images, then stays or falls along a cosine to final_share of it."""

    name: Literal["constant", "cosine"] = "constant"
    warmup_images: int = Field(0, ge=0)
    final_share: float = Field(0.0, ge=0, le=1)


def learning_rate(
    optimizer: OptimizerConfig, schedule: ScheduleConfig, images: int, batch_size: int, total_images: int
) -> float:
    """Learning rate of the step that starts after `images` images: a pure function, so nothing has to be resumed."""
    if images < schedule.warmup_images:
        return optimizer.learning_rate * min(1.0, (images + batch_size) / schedule.warmup_images)
    if schedule.name == "constant":
        return optimizer.learning_rate
    progress = (images - schedule.warmup_images) / max(1, total_images - schedule.warmup_images)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optimizer.learning_rate * (schedule.final_share + (1 - schedule.final_share) * cosine)


def ema_decay(optimizer: OptimizerConfig, images: int, batch_size: int) -> float:
    """The share of the average that a step keeps; 0 copies the weights."""
    halflife = min(optimizer.ema_halflife_images, optimizer.ema_rampup * images)
    return 0.5 ** (batch_size / halflife) if halflife else 0.0


class AdamWithAverage(torch.optim.AdamW):
    """AdamW whose state holds, beside the two moments, the average `ema` of each parameter.

    As a part of the optimizer's state the average is in fp32 and is sharded, gathered, saved and loaded with the
    moments in every ZeRO stage. Each parameter group carries `ema_share`, the share of the weights that enters the
    average (1 - decay), set before a step like `lr`.

    capturable: the rates are tensors that are filled before a step, so that a CUDA graph of it sees new ones.

    skip_if(1.0), a scalar on the device, makes the coming step leave weights, moments and average as they are,
    without the host ever reading it.
    """

    STATE = ("exp_avg", "exp_avg_sq", "ema")

    def __init__(self, module: nn.Module, config: OptimizerConfig, *, capturable: bool = False):
        decayed = [p for p in module.parameters() if p.ndim >= 2]
        others = [p for p in module.parameters() if p.ndim < 2]
        super().__init__(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=capturable,
        )
        for group in self.param_groups:
            for name in ("lr", "ema_share"):
                group[name] = torch.zeros((), device=decayed[0].device) if capturable else 0.0
        self.skip_if(torch.zeros((), device=decayed[0].device))

    def set_rates(self, lr: float, decay: float) -> None:
        for group in self.param_groups:
            for name, value in (("lr", lr), ("ema_share", 1.0 - decay)):
                if isinstance(group[name], Tensor):
                    group[name].fill_(value)
                else:
                    group[name] = value

    def skip_if(self, skipped: Tensor) -> None:
        """Whether the coming step is skipped: float32 scalar, 0 or 1."""
        self.found_inf = skipped  # the name by which torch's fused kernel asks for it

    def create_state(self, params, steps: int = 0) -> None:
        """The state of an optimizer that has made `steps` steps: zero moments, the average at the weights."""
        for p in params:
            self.state[p] = {
                "step": torch.full((), float(steps), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
                "ema": p.detach().clone(),
            }

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                averages = [self.state[p]["ema"] for p in params]
                ahead = torch._foreach_sub(params, averages)
                torch._foreach_mul_(ahead, (1.0 - self.found_inf) * group["ema_share"])
                torch._foreach_add_(averages, ahead)
        return loss
