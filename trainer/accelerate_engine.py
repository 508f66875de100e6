"""Plain torch and DDP through Accelerate: a laptop, one GPU, several ranks that each hold everything."""

import warnings
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from trainer.engine import Engine, EngineConfig, is_invalid, mean_of
from trainer.optimizer import AdamWithAverage, OptimizerConfig
from trainer.world import World

# torch renames the option; accelerate knows it by its old name.
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)


class AccelerateEngine(Engine):
    def __init__(
        self,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        task: nn.Module,
        world: World,
        max_grad_norm: float | None,
    ):
        self.world, self.max_grad_norm = world, max_grad_norm
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self.accelerator = Accelerator(
            cpu=world.device.type == "cpu",
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            kwargs_handlers=[ddp],
        )
        seen = (self.accelerator.process_index, self.accelerator.num_processes)
        assert seen == (world.rank, world.size), f"Accelerate sees rank and world {seen}, the launcher made {world}"
        self.parameters = dict(task.named_parameters())
        self.optimizer = AdamWithAverage(task, optimizer)
        self.optimizer.create_state(self.parameters.values())
        # One process needs no DDP: evaluation_mode leaves the module as it is, but for autocast.
        self.task = self.accelerator.prepare_model(task, evaluation_mode=world.size == 1)

    def step(self, batches, plan, lr, ema_decay):
        terms = []
        for micro, batch in enumerate(batches):
            with self.accelerator.no_sync(self.task) if micro < len(batches) - 1 else nullcontext():
                loss, micro_terms = self.task(batch, plan)
                self.accelerator.backward(loss / len(batches))
            terms.append(micro_terms)
        clip = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        gradient_norm = nn.utils.clip_grad_norm_(self.parameters.values(), clip)
        means = self.mean_over_ranks({**mean_of(terms), "gradient_norm": gradient_norm})
        skipped = is_invalid(*means.values())
        self.optimizer.set_rates(lr, ema_decay)
        self.optimizer.skip_if(skipped)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**means, "skipped": skipped}

    def named_state(self, kind):
        for name, p in self.parameters.items():
            yield name, (p if kind == "weights" else self.optimizer.state[p][kind]).detach().float()

    @torch.no_grad()
    def load_full_state(self, state, steps):
        self.optimizer.create_state(self.parameters.values(), steps)
        for name, p in self.parameters.items():
            p.copy_(state["weights"][name])
            for kind in AdamWithAverage.STATE:
                self.optimizer.state[p][kind].copy_(state[kind][name])
