"""The optimizer of a task: groups of parameters, each with its rule, and the average of the weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.engines.optimizers.adamw import AdamW
from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.optimizers.muon import Muon
from trainer.engines.optimizers.pieces import Pieces, Whole
from trainer.engines.optimizers.rule import Rule
from trainer.tasks.task import Task

# By `optimizer.name`, from (configuration, dtype of large products): what updates the matrices of the trunk.
RULES: dict[str, Callable[[OptimizerConfig, torch.dtype], Rule]] = {"adamw": AdamW, "muon": Muon}


class Optimizer(torch.optim.Optimizer):
    """Updates the matrices that a task names by the rule of `optimizer.name`, all other parameters by AdamW.

    Beside the moments of its rule, the state of each parameter holds its average `ema`. As a part of the optimizer's
    state the average is in fp32 and is sharded, gathered, saved and loaded with the moments in every ZeRO stage. Each
    group carries `lr` and `ema_share`, the share of the weights that enters the average, set before a step.

    capturable: the rates are tensors that are filled before a step, so that a CUDA graph of it sees new ones.

    skip_if(1.0), a scalar on the device, makes the coming step leave weights, moments and average as they are,
    without the host ever reading it.
    """

    def __init__(self, task: Task, config: OptimizerConfig, dtype: torch.dtype, *, capturable: bool = False):
        shapes, named = task.matrices(), dict(task.named_parameters())
        rule, adamw = RULES[config.name](config, dtype), AdamW(config, dtype)
        others = {name: p for name, p in named.items() if name not in shapes}
        groups = (
            (rule, [*shapes], rule.weight_decay),
            (adamw, [name for name, p in others.items() if p.ndim >= 2], adamw.weight_decay),
            (adamw, [name for name, p in others.items() if p.ndim < 2], 0.0),
        )
        device = next(iter(named.values())).device
        super().__init__(
            [
                {
                    "params": [named[name] for name in names],
                    "names": names,
                    "shapes": [shapes[name] for name in names if name in shapes],
                    "rule": rule_of_group,
                    "decay": decay,
                    "lr": torch.zeros((), device=device) if capturable else 0.0,
                    "ema_share": torch.zeros((), device=device) if capturable else 0.0,
                }
                for rule_of_group, names, decay in groups
                if names
            ],
            defaults={},
        )
        self.hold([group["params"] for group in self.param_groups], Whole)
        self.skip_if(torch.zeros((), device=device))

    @property
    def kinds(self) -> dict[str, list[str]]:
        """The names of the parameters that have each kind of state."""
        kinds: dict[str, list[str]] = {}
        for group in self.param_groups:
            for kind in (*group["rule"].MOMENTS, "ema"):
                kinds.setdefault(kind, []).extend(group["names"])
        return kinds

    def hold(self, tensors: Sequence[Sequence[Tensor]], pieces: type[Pieces]) -> None:
        """Say what this rank updates of each group: its parameters, or one flat tensor that holds pieces of them."""
        self.held = tensors
        self._pieces: dict[Tensor, Pieces] = {}
        for group, of_group in zip(self.param_groups, tensors, strict=True):
            if shapes := group["shapes"]:
                cut = [[shape] for shape in shapes] if pieces is Whole else [shapes]
                self._pieces |= {tensor: pieces(held) for tensor, held in zip(of_group, cut, strict=True)}

    def create_state(self, steps: int = 0) -> None:
        """The state of an optimizer that has made `steps` steps: zero moments, the average at the weights."""
        for group, tensors in zip(self.param_groups, self.held, strict=True):
            for p in tensors:
                self.state[p] = {
                    "step": torch.full((), float(steps), device=p.device),
                    **{moment: torch.zeros_like(p) for moment in group["rule"].MOMENTS},
                    "ema": p.detach().clone(),
                }

    def set_rates(self, rate: float, ema_decay: float) -> None:
        """For the coming step: the share of their learning rates that the rules take, and what the average keeps."""
        for group in self.param_groups:
            for name, value in (("lr", rate * group["rule"].learning_rate), ("ema_share", 1.0 - ema_decay)):
                if isinstance(group[name], Tensor):
                    group[name].fill_(value)
                else:
                    group[name] = value

    def skip_if(self, skip: Tensor) -> None:
        """Whether the coming step is skipped: float32 scalar, 0 or 1."""
        self._skip = skip

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]  # nobody gives a closure
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states, pieces = [self.state[p] for p in params], [self._pieces.get(p) for p in params]
            group["rule"].step(params, states, pieces, group["lr"], group["decay"], self._skip)
            share = (1.0 - self._skip) * group["ema_share"]
            for p, state in zip(params, states, strict=True):  # foreach takes no share that is a tensor
                state["ema"].lerp_(p, share)
