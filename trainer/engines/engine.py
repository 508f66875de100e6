"""The one interface between the loop and what spreads a step over processes."""

import time
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.batch import Batch
from data.section import Section
from model.masks import Plan
from trainer.engines.cuda_graphs import StepGraphs
from trainer.engines.schedule import Rates
from trainer.ranks.world import World

# The newer names of its collectives are not in every torch that is supported.
warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)


class EngineConfig(Section):
    """deepspeed: many GPUs and nodes, ZeRO. accelerate: a laptop or GPUs that hold everything."""

    name: Literal["deepspeed", "accelerate"] = "deepspeed"  # what spreads a step over processes
    zero_stage: int = Field(1, ge=0, le=3)  # deepspeed only
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic; weights, moments and average stay in fp32
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU where there is one
    attention: Literal["auto", "sdpa", "triton"] = "auto"  # of query_only; triton: one launch a layer, on a GPU
    timeout_seconds: int = Field(600, gt=0)  # that a rank waits for the others before it gives up
    compile: Literal["auto"] | bool = "auto"  # torch.compile; the first step takes about a minute more
    activation_checkpointing: bool = False  # of each block its input is kept and the rest computed again: less memory
    cuda_graphs: Literal["auto"] | bool = "auto"  # one CUDA graph a plan, up to zero_stage 1; idle on the CPU

    @property
    def dtype(self) -> torch.dtype:
        """Of large products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.compile is True and not self.can_compile:
            raise ValueError(
                "compile does not go with stage 3, which gathers weights in hooks: set engine.zero_stage to 0, 1 or 2, "
                "or engine.compile=false"
            )
        if self.cuda_graphs is True and not self.can_record:
            raise ValueError(
                f"cuda_graphs does not go with stage {self.zero_stage}, which cuts gradients in hooks: "
                "set engine.zero_stage to 0 or 1, engine.name=accelerate, or engine.cuda_graphs=false"
            )
        return self

    @property
    def can_compile(self) -> bool:
        """Whether torch.compile goes with how weights are held."""
        return self.name == "accelerate" or self.zero_stage < 3

    @property
    def can_record(self) -> bool:
        """Whether a CUDA graph can hold forward and backward."""
        return self.name == "accelerate" or self.zero_stage < 2


class HeldGradients:
    """Gradients that stay where they are: those of all parameters are views of one tensor.

    A recorded backward adds to them whenever it is replayed, and one collective serves them all.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._parameters = [*parameters]
        sizes = [p.numel() for p in self._parameters]
        self._all = torch.zeros(sum(sizes), device=self._parameters[0].device)
        pairs = zip(self._all.split(sizes), self._parameters, strict=True)
        self._views = [part.view_as(p) for part, p in pairs]

    def clear(self) -> None:
        """Start at zero."""
        self._all.zero_()
        self.show()

    def show(self) -> None:
        """Let each parameter have its gradient: an optimizer takes them away, and a replay does not bring them back."""
        for p, view in zip(self._parameters, self._views, strict=True):
            p.grad = view

    def average(self, world_size: int) -> None:
        """Over all ranks."""
        if world_size > 1:
            dist.all_reduce(self._all)
            self._all /= world_size


class Engine(ABC):
    """Trains one task on all processes of a world. Every method is collective: all ranks call it."""

    world: World
    kinds: dict[str, list[str]]  # of state (weights, the moments, ema): the names of the parameters that have it
    task: Callable[[Batch, Plan, Tensor], tuple[Tensor, dict[str, Tensor]]]
    beta: Tensor  # of the coming step
    gradients: HeldGradients | None = None  # None: a backward makes new ones
    graphs: StepGraphs | None = None
    _seconds: defaultdict[str, float] | None = None

    def timed_step(self, *inputs: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        """`step`, and the seconds of its phases, for which the host waits for the device."""
        if self.graphs:  # the phases of a replay are not the host's to see
            return self.step(*inputs), {}
        self._seconds, began = defaultdict(float), self._now()
        terms = self.step(*inputs)
        seconds, self._seconds = self._seconds, None
        seconds["seconds_optimizer"] = self._now() - began - sum(seconds.values())
        return terms, seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside is `seconds_<name>` of a timed step."""
        if self._seconds is None:
            yield
            return
        began = self._now()
        yield
        self._seconds[f"seconds_{name}"] += self._now() - began

    def _now(self) -> float:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    @abstractmethod
    def step(self, batches: Sequence[Batch], plan: Plan, rates: Rates) -> dict[str, Tensor]:
        """One optimizer step over the micro-batches of this rank.

        Returns the terms as float32 scalars on the device, means over all ranks and micro-batches, with
        `gradient_norm` (before clipping) and `skipped` among them. A step with a term or a gradient that is not
        finite, on whichever rank, is skipped by all: `skipped` is 1 and the state stays as it was.
        """

    def compute_gradients(self, batches: Sequence[Batch], plan: Plan) -> dict[str, Tensor]:
        """Forward and backward of the micro-batches of this rank: the terms, means over them, and the gradients.

        The host never waits in it and nothing else is called on the way, so that a graph can hold it.
        """
        if self.gradients:
            self.gradients.clear()
        terms = []
        for batch in batches:
            with self.phase("forward"):
                loss, of_batch = self.task(batch, plan, self.beta)
            with self.phase("backward"):
                (loss / len(batches)).backward()
            terms.append(of_batch)
        return mean_of(terms)

    @abstractmethod
    def named_state(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's name and whole fp32 tensor, gathered one by one; ranks iterate to the end together.

        kind: one of `kinds`. The tensors may be the engine's own: copy what you keep.
        """

    def full_state(self, *kinds: str) -> dict[str, dict[str, Tensor]]:
        """Whole fp32 tensors on every rank, by kind and parameter name."""
        return {kind: dict(self.named_state(kind)) for kind in kinds}

    @abstractmethod
    def load_full_state(self, state: dict[str, dict[str, Tensor]], steps: int) -> None:
        """Continue from what `full_state` gave for all kinds after `steps` optimizer steps, on any engine."""

    def mean_over_ranks(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average scalars over all ranks in one collective: what is not finite on one is so on all."""
        values = torch.stack([value.float() for value in terms.values()])
        if self.world.size > 1:
            dist.all_reduce(values)
            values /= self.world.size
        return dict(zip(terms, values.unbind(), strict=True))


def is_invalid(*values: Tensor) -> Tensor:
    """1.0 unless every scalar is finite, as a float32 scalar on the device."""
    return 1.0 - torch.stack([value.float() for value in values]).isfinite().all().float()


def mean_of(terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each term over micro-batches."""
    return {name: torch.stack([t[name].float() for t in terms]).mean() for name in terms[0]}
