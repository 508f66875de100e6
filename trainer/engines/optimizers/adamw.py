"""AdamW (Loshchilov & Hutter 2019), by torch's fused kernel."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.optimizers.rule import Params, Rule, States


class AdamW(Rule):
    """Element by element, in fp32: it needs no whole matrices and has no large products."""

    MOMENTS = ("exp_avg", "exp_avg_sq")

    def __init__(self, config: OptimizerConfig, dtype: torch.dtype):
        self.learning_rate, self.weight_decay = config.learning_rate, config.weight_decay
        self._how: dict[str, Any] = {"beta1": config.beta1, "beta2": config.beta2, "eps": config.eps}

    def step(
        self, params: Params, states: States, pieces: object, lr: Tensor | float, decay: float, skip: Tensor
    ) -> None:
        averages, squares = ([state[name] for state in states] for name in self.MOMENTS)
        counts = [state["step"] for state in states]
        how = {**self._how, "lr": lr, "weight_decay": decay, "found_inf": skip, "amsgrad": False, "maximize": False}
        adamw([*params], [p.grad for p in params], averages, squares, [], counts, fused=True, **how)
