"""Plain torch, with Accelerate for the precision: a laptop, one GPU, several ranks that each hold everything."""

import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from data.batch import Batch
from model.masks import Plan
from trainer.engines.cuda_graphs import MakeRecorder, StepGraphs
from trainer.engines.engine import Engine, EngineConfig, HeldGradients, is_invalid
from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.optimizers.optimizer import Optimizer
from trainer.engines.schedule import Rates
from trainer.ranks.world import World
from trainer.tasks.task import Task

warnings.filterwarnings("ignore", "This instance was constructed with capturable=True", UserWarning)


class AccelerateEngine(Engine):
    """make_recorder: of CUDA graphs; None: steps are not recorded."""

    def __init__(
        self,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        task: Task,
        world: World,
        max_grad_norm: float | None,
        make_recorder: MakeRecorder | None = None,
    ):
        self.world, self.max_grad_norm = world, max_grad_norm
        self.accelerator = Accelerator(
            cpu=world.device.type == "cpu", mixed_precision="bf16" if config.precision == "bf16" else "no"
        )
        seen = (self.accelerator.process_index, self.accelerator.num_processes)
        assert seen == (world.rank, world.size), f"Accelerate sees rank and world {seen}, the launcher made {world}"
        self.parameters = dict(task.named_parameters())
        for p in self.parameters.values() if world.size > 1 else ():
            dist.broadcast(p.detach(), src=0)  # whatever made them on other machines
        # Capturable with and without graphs, so that both compute the same.
        capturable = world.device.type == "cuda"
        self.optimizer = Optimizer(task, optimizer, config.dtype, capturable=capturable)
        self.optimizer.create_state()
        self.kinds = {"weights": [*self.parameters], **self.optimizer.kinds}
        self.beta = torch.zeros((), device=world.device)
        # Without DDP, which reduces gradients in hooks that no graph can hold: ours are reduced after the backward.
        self.task = self.accelerator.prepare_model(task, evaluation_mode=True)
        self.gradients = HeldGradients(self.parameters.values()) if world.size > 1 else None
        recorded = self.step_of_one if world.size == 1 else self.compute_gradients
        self.graphs = StepGraphs(recorded, make_recorder) if make_recorder else None

    def step(self, batches: Sequence[Batch], plan: Plan, rates: Rates) -> dict[str, Tensor]:
        self.optimizer.set_rates(rates.learning, rates.ema_decay)
        self.beta.fill_(rates.beta)
        if not self.gradients:
            return (self.graphs or self.step_of_one)(batches, plan)
        terms = (self.graphs or self.compute_gradients)(batches, plan)
        self.gradients.show()
        self.gradients.average(self.world.size)
        return self.update(terms)

    def step_of_one(self, batches: Sequence[Batch], plan: Plan) -> dict[str, Tensor]:
        """A whole step of one process."""
        return self.update(self.compute_gradients(batches, plan))

    def update(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The optimizer's step, at the rates that it was given. The host never waits in it, as in the backward."""
        clip = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        gradient_norm = nn.utils.clip_grad_norm_(self.parameters.values(), clip)
        means = self.mean_over_ranks({**terms, "gradient_norm": gradient_norm})
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
