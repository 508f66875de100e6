"""Plain torch and DDP through Accelerate: a laptop, one GPU, several ranks that each hold everything."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from data.batch import Batch
from data.errors import UserError
from model.masks import Plan
from trainer.engines.cuda_graphs import StepGraphs
from trainer.engines.engine import Engine, EngineConfig, is_invalid, mean_of
from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.optimizers.optimizer import Optimizer
from trainer.engines.schedule import Rates
from trainer.ranks.world import World
from trainer.tasks.task import Task

# torch renames the option; accelerate knows it by its old name.
warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)


class AccelerateEngine(Engine):
    def __init__(
        self,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        task: Task,
        world: World,
        max_grad_norm: float | None,
    ):
        if config.cuda_graphs and world.size > 1:
            raise UserError(
                f"engine.cuda_graphs is for one process, this run has {world.size}: set engine.cuda_graphs=false"
            )
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
        # Capturable with and without graphs, so that both compute the same.
        capturable = world.device.type == "cuda"
        self.optimizer = Optimizer(task, optimizer, config.dtype, capturable=capturable)
        self.optimizer.create_state()
        self.kinds = {"weights": [*self.parameters], **self.optimizer.kinds}
        self.beta = torch.zeros((), device=world.device)
        # One process needs no DDP: evaluation_mode leaves the module as it is, but for autocast.
        self.task = self.accelerator.prepare_model(task, evaluation_mode=world.size == 1)
        self.graphs = StepGraphs(self.step_at_rates) if config.cuda_graphs and world.device.type == "cuda" else None
        self.can_be_timed = self.graphs is None

    def step(self, batches: Sequence[Batch], plan: Plan, rates: Rates) -> dict[str, Tensor]:
        self.optimizer.set_rates(rates.learning, rates.ema_decay)
        self.beta.fill_(rates.beta)
        return (self.graphs or self.step_at_rates)(batches, plan)

    def step_at_rates(self, batches: Sequence[Batch], plan: Plan) -> dict[str, Tensor]:
        """A step at the rates that the optimizer was given. The host never waits in it, so that a graph can hold it."""
        terms = []
        for micro, batch in enumerate(batches):
            with self.accelerator.no_sync(self.task) if micro < len(batches) - 1 else nullcontext():
                with self.phase("forward"):
                    loss, micro_terms = self.task(batch, plan, self.beta)
                with self.phase("backward"):
                    self.accelerator.backward(loss / len(batches))
            terms.append(micro_terms)
        clip = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        gradient_norm = nn.utils.clip_grad_norm_(self.parameters.values(), clip)
        means = self.mean_over_ranks({**mean_of(terms), "gradient_norm": gradient_norm})
        skipped = is_invalid(*means.values())
        self.optimizer.skip_if(skipped)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # the gradients of a graph are in its own memory
        return {**means, "skipped": skipped}

    def named_state(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        for name in self.kinds[kind]:
            p = self.parameters[name]
            yield name, (p if kind == "weights" else self.optimizer.state[p][kind]).detach().float()

    @torch.no_grad()
    def load_full_state(self, state: dict[str, dict[str, Tensor]], steps: int) -> None:
        self.optimizer.create_state(steps)
        if self.graphs:
            self.graphs.clear()  # they work on the state that has just been replaced
        for kind, names in self.kinds.items():
            for name in names:
                p = self.parameters[name]
                (p if kind == "weights" else self.optimizer.state[p][kind]).copy_(state[kind][name])
