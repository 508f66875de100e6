"""ZeRO stages 0 to 3 through DeepSpeed's engine."""

from collections.abc import Iterator, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from data.batch import Batch
from model.masks import Plan
from trainer.engines import deepspeed_internals
from trainer.engines.cuda_graphs import MakeRecorder, StepGraphs
from trainer.engines.engine import Engine, EngineConfig, HeldGradients, is_invalid, mean_of
from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.optimizers.optimizer import Optimizer
from trainer.engines.optimizers.pieces import Contiguous, Interleaved
from trainer.engines.schedule import Rates
from trainer.ranks.world import World
from trainer.tasks.task import Task

deepspeed_internals.be_quiet_and_compile_nothing()


class DeepSpeedEngine(Engine):
    """make_recorder: of CUDA graphs, in stages 0 and 1; None: steps are not recorded."""

    def __init__(
        self,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        task: Task,
        world: World,
        micro_batch_size: int,
        accumulation_steps: int,
        max_grad_norm: float | None,
        make_recorder: MakeRecorder | None = None,
    ):
        self.world, self.stage, self.config = world, config.zero_stage, config
        self.optimizer = Optimizer(task, optimizer, config.dtype)
        # Inside engine.step(), after the norm is known and before the first of its calls of the optimizer.
        self.optimizer.register_step_pre_hook(lambda *_: self.optimizer.skip_if(self._skipped()))
        settings = {
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": accumulation_steps,
            "gradient_clipping": max_grad_norm or 0.0,
            # A sub-group is a group of parameters: what steps together holds all of its matrices.
            "zero_optimization": {
                "stage": config.zero_stage,
                "sub_group_size": 2**62,
                "reduce_bucket_size": sum(p.numel() for p in task.parameters()),  # all at once; 2 GB by default
                "contiguous_gradients": config.zero_stage > 1,  # which it fills in hooks
            },
            "zero_allow_untested_optimizer": True,  # ours
            "steps_per_print": 2**62,
        }
        if config.precision == "bf16":  # of products, as in the other engine; weights, norms and sums stay in fp32
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        deepspeed.init_distributed()
        self.engine, *_ = deepspeed.initialize(model=task, optimizer=self.optimizer, config=settings)
        seen = (self.engine.global_rank, self.engine.world_size)
        assert seen == (world.rank, world.size), f"DeepSpeed sees rank and world {seen}, the launcher made {world}"
        self.parameters: dict[str, Any] = dict(task.named_parameters())
        self.kinds = {"weights": [*self.parameters], **self.optimizer.kinds}
        self.beta = torch.zeros((), device=world.device)
        self._hold_pieces()
        self._create_state(steps=0)
        if self.stage < 2:  # no hook has a part in the backward, which therefore can be recorded
            self.task = self._forward
            self.gradients = HeldGradients(self.parameters.values())
            self.engine.set_gradient_accumulation_boundary(True)  # all of a step is in the gradients already
            self.graphs = StepGraphs(self.compute_gradients, make_recorder) if make_recorder else None

    def step(self, batches: Sequence[Batch], plan: Plan, rates: Rates) -> dict[str, Tensor]:
        self.beta.fill_(rates.beta)
        means = (
            self._reduced(self.gradients, batches, plan) if self.gradients else self._reduced_by_hooks(batches, plan)
        )
        if self.stage == 0:  # DeepSpeed does not compute the norm in this stage
            means["gradient_norm"] = nn.utils.get_total_norm([p.grad for p in self.parameters.values()])
        self.means = self.mean_over_ranks(means)
        self.optimizer.set_rates(rates.learning, rates.ema_decay)
        self.engine.step()
        return {**self.means, "gradient_norm": self._gradient_norm(), "skipped": self._skipped()}

    def _forward(self, batch: Batch, plan: Plan, beta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.engine.module(batch, plan, beta)

    def _reduced(self, gradients: HeldGradients, batches: Sequence[Batch], plan: Plan) -> dict[str, Tensor]:
        """Stages 0 and 1, where the gradients of all ranks meet when they are whole."""
        terms = (self.graphs or self.compute_gradients)(batches, plan)
        gradients.show()
        if self.stage == 0:
            gradients.average(self.world.size)
        else:
            self.engine.allreduce_gradients()
        return terms

    def _reduced_by_hooks(self, batches: Sequence[Batch], plan: Plan) -> dict[str, Tensor]:
        """Stages 2 and 3, which take each gradient away as soon as it is there."""
        terms = []
        for micro, batch in enumerate(batches):
            with self.phase("forward"):
                loss, of_batch = self.engine(batch, plan, self.beta)
            with self.phase("backward"):
                self.engine.backward(loss)
            terms.append(of_batch)
            if micro < len(batches) - 1:
                self.engine.step()  # counts the accumulation
        return mean_of(terms)

    def _gradient_norm(self) -> Tensor:
        """Of the coming or the last step, over all ranks; not finite where DeepSpeed marks it as invalid, by -1."""
        if self.stage == 0:
            return self.means["gradient_norm"]
        norm = torch.as_tensor(deepspeed_internals.gradient_norm(self.engine), device=self.world.device).float()
        return torch.where(norm < 0, torch.nan, norm)

    def _skipped(self) -> Tensor:
        return is_invalid(*self.means.values(), self._gradient_norm())

    def named_state(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        for name in self.kinds[kind]:
            yield name, self._get(self.parameters[name], kind)

    @torch.no_grad()
    def load_full_state(self, state: dict[str, dict[str, Tensor]], steps: int) -> None:
        self._create_state(steps)
        if self.graphs:
            self.graphs.clear()
        for kind, names in self.kinds.items():
            for name in names:
                self._set(self.parameters[name], kind, state[kind][name].to(self.world.device))

    def _hold_pieces(self) -> None:
        """In stages 1 to 3 the optimizer updates, not parameters, but flat pieces of all parameters of a group."""
        if self.stage == 3:
            self.optimizer.hold([[flat] for flat in deepspeed_internals.flat_pieces(self.engine)], Interleaved)
        elif self.stage:
            self.optimizer.hold([group["params"] for group in self.optimizer.param_groups], Contiguous)

    def _create_state(self, steps: int) -> None:
        """Make the optimizer's state before the first step, so that it can be read and set at any time."""
        self.optimizer.create_state(steps)
        if self.stage in (1, 2):
            deepspeed_internals.link_state(self.engine)

    def _get(self, p: nn.Parameter, kind: str) -> Tensor:
        if self.stage == 0:
            return (p if kind == "weights" else self.optimizer.state[p][kind]).detach().float()
        value = safe_get_full_fp32_param(p) if kind == "weights" else safe_get_full_optimizer_state(p, kind)
        return value.detach()

    def _set(self, p: nn.Parameter, kind: str, value: Tensor) -> None:
        if self.stage == 0:
            (p if kind == "weights" else self.optimizer.state[p][kind]).copy_(value)
        elif kind != "weights":
            safe_set_full_optimizer_state(p, value, kind)
        else:
            safe_set_full_fp32_param(p, value)  # the fp32 master, then the weights that compute
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=self.stage == 3):
                p.copy_(value)
