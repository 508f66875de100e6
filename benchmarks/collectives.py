"""The messages by which the ranks of a step meet: predicted from a configuration, and counted as they are sent."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.batch import Batch
from data.errors import UserError
from model.masks import Plan
from trainer.config import Config
from trainer.engines.optimizers.muon import Muon
from trainer.engines.optimizers.optimizer import Optimizer
from trainer.tasks.task import Task

FP32, FP64, INT64 = 4, 8, 8  # bytes of an element

# Defaults of DeepSpeed's, in elements.
MOST_ELEMENTS = 500_000_000  # half of stage3_max_reuse_distance: whose weights stage 3 gathers once in a step
PREFETCH_BUCKET = 50_000_000  # stage3_prefetch_bucket_size: weights that are gathered by one message
PERSISTENT = 100_000  # stage3_param_persistence_threshold: a parameter below is whole on every rank
ALIGNMENT = 2  # nccl_start_alignment_factor: a piece has a multiple of so many

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast", "send"]
# When: what a step cannot go on without, what is gathered while the forward computes, what the hosts alone agree on.
When = Literal["exposed", "forward", "host"]


@dataclass(frozen=True)
class Message:
    """One collective, or what a rank sends to another.

    bytes: of the whole tensor, padding included, which is sent, reduced, gathered or scattered.
    """

    operation: Operation
    bytes: int
    when: When = "exposed"

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends, of collectives in a ring."""
        if self.operation == "send":
            return self.bytes
        return (2 if self.operation == "all_reduce" else 1) * (ranks - 1) / ranks * self.bytes


@dataclass(frozen=True)
class Group:
    """Parameters that the optimizer updates by one rule.

    sizes: their elements. states: numbers that the optimizer keeps of each. matrices: how many of each
    (rows, columns) the rule needs whole.
    """

    sizes: tuple[int, ...]
    states: int
    matrices: dict[tuple[int, int], int]


@dataclass(frozen=True)
class StepShape:
    """What the messages of a step follow from.

    used: elements of every parameter, in the order in which a forward comes to them. terms: scalars that are averaged.
    """

    groups: tuple[Group, ...]
    used: tuple[int, ...]
    terms: int

    @property
    def elements(self) -> int:
        return sum(self.used)


def step_shape(config: Config, task: Task, plan: Plan) -> StepShape:
    """Of a step with this plan; `task` is that of the configuration, on the meta device."""
    used: dict[Tensor, int] = {}

    def enters(module: nn.Module, inputs: Any) -> None:
        used.update((p, p.numel()) for p in module.parameters(recurse=False))

    hooks = [module.register_forward_pre_hook(enters) for module in task.modules()]
    with torch.device("meta"):
        count, data = len(plan.groups), config.data
        _, terms = task(Batch(torch.empty(count, data.patches, data.token_dim), torch.arange(count)), plan, beta=1.0)
    for hook in hooks:
        hook.remove()
    used.update((p, p.numel()) for p in task.parameters())
    optimizer = Optimizer(task, config.optimizer, config.engine.dtype)
    return StepShape(tuple(map(_group, optimizer.param_groups)), tuple(used.values()), len(terms))


def _group(of_optimizer: dict[str, Any]) -> Group:
    rule, matrices = of_optimizer["rule"], Counter[tuple[int, int]]()
    for count, rows, columns in of_optimizer["shapes"] if isinstance(rule, Muon) else ():
        matrices[rows, columns] += count
    states = len(rule.MOMENTS) + 1  # and the average
    return Group(tuple(p.numel() for p in of_optimizer["params"]), states, dict(matrices))


def stage_of(config: Config) -> int:
    """Of ZeRO; 0, too, for plain torch."""
    return config.engine.zero_stage if config.engine.name == "deepspeed" else 0


def messages_of_step(config: Config, shape: StepShape, ranks: int) -> list[Message]:
    """What a step of the loop sends, in its order; nothing for one rank.

    In stage 3 it is what steps send from the third one on, when DeepSpeed has seen twice in which order weights are
    used. UserError for a model of more than MOST_ELEMENTS, which may send more.
    """
    if shape.elements > MOST_ELEMENTS:
        raise UserError(
            f"the model has {shape.elements:,} parameters, and messages are predicted for at most {MOST_ELEMENTS:,}, "
            "which stage 3 gathers once in a step"
        )
    if ranks == 1:
        return []
    stage, groups, accumulation = stage_of(config), shape.groups, config.train.accumulation_steps
    gradients = Message("all_reduce", FP32 * shape.elements)
    updates = list(_muon(config, groups, ranks))
    # What the loops agree on after a step (World.max_over_ranks).
    control = [Message("send", 3 * INT64, "host")] * math.ceil(math.log2(ranks))
    if stage == 0:
        clips = config.engine.name == "deepspeed" and config.train.max_grad_norm is not None
        norms = [Message("all_reduce", FP32)] * clips
        return [gradients, Message("all_reduce", FP32 * (shape.terms + 1)), *norms, *updates, *control]
    terms = Message("all_reduce", FP32 * shape.terms)
    if stage < 3:
        reduced = [gradients] * (accumulation if stage == 2 else 1)
        norms = [Message("all_reduce", FP32)] * len(groups)
        gathered = [Message("all_gather", FP32 * held_elements(group, stage, ranks) * ranks) for group in groups]
        return [*reduced, terms, *norms, *updates, *gathered, *control]
    scattered = Message("reduce_scatter", FP32 * sum(_padded(size, ranks) for size in shape.used))
    passes = [*_fetches(shape.used, ranks), scattered] * accumulation
    norms = [Message("all_reduce", FP64)] * len(groups)
    gathered = [Message("all_gather", FP32 * _padded(size, ranks)) for size in shape.used if size < PERSISTENT]
    return [*passes, terms, *norms, *updates, *gathered, *control]


def _muon(config: Config, groups: Iterable[Group], ranks: int) -> Iterator[Message]:
    """Of Muon: what each rank has of the directions, then the share of the matrices that it made orthogonal."""
    stage, size = stage_of(config), config.engine.dtype.itemsize
    for group in groups:
        if group.matrices and stage:
            yield Message("all_gather", size * held_elements(group, stage, ranks) * ranks)
        for (rows, columns), count in group.matrices.items():
            matrix = size * rows * columns
            if ranks > 2 * count:
                yield Message("all_reduce", count * matrix)
            else:
                yield Message("all_gather", _padded(count, ranks) * matrix)


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple


def held_elements(group: Group, stage: int, ranks: int) -> int:
    """Elements that a rank holds of a group in stages 1 to 3."""
    if stage == 3:
        return sum(-(-size // ranks) for size in group.sizes)
    return _padded(sum(group.sizes), ALIGNMENT * ranks) // ranks


def _fetches(used: Iterable[int], ranks: int) -> list[Message]:
    """Of stage 3: the weights that are not whole on every rank, a bucket a message, all but the first in the forward.

    They stay until the backward is over, for no two uses of one are further apart than max_reuse_distance.
    """
    buckets: list[list[int]] = [[]]
    for size in used:
        if size >= PERSISTENT:
            if sum(buckets[-1]) >= PREFETCH_BUCKET:
                buckets.append([])
            buckets[-1].append(size)
    whens: list[When] = ["exposed", *["forward"] * (len(buckets) - 1)]
    sizes = [FP32 * sum(_padded(size, ranks) for size in bucket) for bucket in buckets]
    return [Message("all_gather", size, when) for size, when in zip(sizes, whens, strict=True) if size]


class CountedMessages(TorchDispatchMode):
    """Inside, every collective of this thread is a `Message` of `seen`, whichever library calls it.

    On a GPU the backward, and what its hooks send, runs in a thread of its own and is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Message] = []

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "c10d" and function._opname not in ("barrier", "recv_"):
            operation, whole = _OPERATIONS[function._opname]
            tensor = whole(args)
            self.seen.append(Message(operation, tensor.numel() * tensor.element_size()))
        return function(*args, **(kwargs or {}))


# By the names of torch's operators; which of their arguments is the whole tensor.
_OPERATIONS: dict[str, tuple[Operation, Callable[[tuple], Tensor]]] = {
    "allreduce_": ("all_reduce", lambda args: args[0][0]),
    "broadcast_": ("broadcast", lambda args: args[0][0]),
    "send": ("send", lambda args: args[0][0]),
    "_allgather_base_": ("all_gather", lambda args: args[0]),
    "_reduce_scatter_base_": ("reduce_scatter", lambda args: args[1]),
}
