"""How much memory a rank needs, from a step and an evaluation that run on tensors without storage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from data.batch import Batch
from model.transformer import Layer
from trainer.config import Config
from trainer.engines.optimizers.optimizer import Optimizer
from trainer.engines.optimizers.pieces import Contiguous, Interleaved
from trainer.tasks.biglearn import BigLearnTask
from trainer.tasks.live_bytes import LiveBytes
from trainer.tasks.task import Task


@dataclass(frozen=True)
class Memory:
    """Bytes that the tensors of one rank hold when they hold most.

    weights: those that are trained, and the copy that evaluations look at. gradients: with DeepSpeed's bucket.
    optimizer: moments and average, with DeepSpeed's masters. activations: what a step or an evaluation needs beside
    these. total: the sum. Neither images that stay on the device nor what libraries allocate for themselves.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    total: int


def expected_memory(config: Config, task: Task, world_size: int) -> Memory:
    """Of a rank of so many. task: of `meta_task`; it is of no use afterwards.

    A way of computing that is still `auto` counts as that of a CPU, and what torch.compile saves is not known.
    """
    engine = config.engine
    stage = engine.zero_stage if engine.name == "deepspeed" else 0
    if engine.attention == "triton" and isinstance(task, BigLearnTask):
        task.attend = _attend_as_the_kernel
    live = LiveBytes("meta")
    for p in task.parameters():
        live.count(p)
    whole = sum(p.numel() for p in task.parameters())
    share = -(-whole // world_size)
    with torch.device("meta"), live, _world(world_size):
        # What stands for tensors of an engine. The task's own parameters are those of the copy.
        trained = torch.empty(share if stage == 3 else whole)
        gathered = torch.empty(whole if stage == 3 and world_size > 1 else 0)  # all that a step needs; DeepSpeed waits
        weights = live.now
        optimizer = _optimizer(config, task, stage, world_size)
        of_optimizer = live.now - weights
        partition = torch.empty(share if stage > 1 else 0)
        gradients = 4 * whole + partition.nbytes
        if engine.name == "deepspeed" or world_size > 1 or config.train.accumulation_steps > 1:
            for p in task.parameters():  # they are there before the backward, or the bucket is that they are put into
                p.grad = torch.empty_like(p)

        _forward_and_backward(config, task, world_size)
        indices = live.now - weights - of_optimizer - gradients  # of one plan; those of all stay
        del gathered
        if stage == 2:  # the bucket is given back
            task.zero_grad()
        _update(optimizer, has_pieces=stage > 0)
        # The graphs keep what they have.
        pool = torch.empty((live.peak - live.now) // 4 if engine.cuda_graphs is True else 0)
        _evaluate(config, task)
        total = live.peak + (len(task.plans) - 1) * indices
        del trained, partition, pool
    return Memory(weights, gradients, of_optimizer, total - weights - gradients - of_optimizer, total)


@contextmanager
def _world(size: int) -> Iterator[None]:
    """A world of so many ranks, whose collectives do nothing, unless there is one, of a single rank then."""
    if dist.is_initialized():
        assert dist.get_world_size() == size == 1, "a world of several ranks would really gather"
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _optimizer(config: Config, task: Task, stage: int, world_size: int) -> Optimizer:
    """With its state, holding what a stage leaves to a rank."""
    optimizer = Optimizer(task, config.optimizer, config.engine.dtype)
    if stage:
        for group in optimizer.param_groups:
            group["params"] = [torch.empty(sum(-(-p.numel() // world_size) for p in group["params"]))]
        pieces = Interleaved if stage == 3 else Contiguous
        optimizer.hold([group["params"] for group in optimizer.param_groups], pieces)
    optimizer.create_state()
    return optimizer


def _forward_and_backward(config: Config, task: Task, world_size: int) -> None:
    """Of a micro-batch, by the plan of most tokens."""
    plan = max(task.plans, key=lambda plan: sum(n_S + n_T for n_S, n_T in plan.groups))
    size = config.micro_batch_size(world_size)
    batches = [_batch(config, size) for _ in range(config.train.accumulation_steps)]
    casts: dict[Tensor, Tensor] = {}
    with _AsOnADevice(config.engine.dtype, casts):
        loss, _ = task(batches[0], plan, 1.0)
    casts.clear()
    edge = get_gradient_edge(loss)  # the backward of a tensor would leave the mode, which is for what is computed again
    del loss
    with _AsOnADevice(config.engine.dtype):
        torch.autograd.backward(edge, torch.ones(()))


def _update(optimizer: Optimizer, has_pieces: bool) -> None:
    """A step of the optimizer. has_pieces: it gets gradients of its own."""
    for group in optimizer.param_groups if has_pieces else ():
        for piece in group["params"]:
            piece.grad = torch.empty_like(piece)
    optimizer.step()
    optimizer.zero_grad()


def _evaluate(config: Config, task: Task) -> None:
    """A batch, which no autocast is around."""
    size = config.evaluate.batch_size
    batch = _batch(config, min(size, config.evaluate.images or size))
    with _AsOnADevice(torch.float32):
        for evaluator in task.evaluators:
            evaluator.measure(batch)


def _batch(config: Config, size: int) -> Batch:
    return Batch(torch.empty(size, config.data.patches, config.data.token_dim), torch.arange(size))


class _AsOnADevice(TorchFunctionMode):
    """What devices do, and tensors without storage do not: attention without a matrix of scores, and autocast.

    dtype: of large products. casts: keeps the weights that were cast, as autocast does in a forward.
    """

    _PRODUCTS = (F.linear, F.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention)

    def __init__(self, dtype: torch.dtype, casts: dict[Tensor, Tensor] | None = None):
        super().__init__()
        self._dtype, self._casts = dtype, casts

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self._PRODUCTS:
            args = [self._cast(x) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args]
        if function is F.scaled_dot_product_attention:  # all fused kernels keep the same
            function = _fused_attention
        return function(*args, **(kwargs or {}))

    def _cast(self, x: Tensor) -> Tensor:
        if self._dtype == torch.float32:
            return x
        if self._casts is None or not (x.is_leaf and x.requires_grad):
            return x.to(self._dtype)
        if x not in self._casts:
            self._casts[x] = x.to(self._dtype)
        return self._casts[x]


def _fused_attention(q_BHQK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHQK, k_BHNK, v_BHNK, attn_mask=attn_mask)[0]


def _attend_as_the_kernel(
    layer: Layer, q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, kept: object
) -> tuple[Tensor, None]:
    """Keeps what the kernel of one launch keeps: queries, keys and values as they are, answers, a sum for each."""
    y_BHQK = F.scaled_dot_product_attention(*(x_NHK.transpose(0, 1)[None] for x_NHK in (q_QHK, k_NHK, v_NHK)))
    return y_BHQK[0].transpose(0, 1), None
