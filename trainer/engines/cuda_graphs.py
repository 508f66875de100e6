"""Training steps as CUDA graphs, one a plan: the host launches a step at once and not each of its kernels."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.batch import Batch
from model.masks import Plan

log = logging.getLogger(__name__)

Terms = dict[str, Tensor]
Step = Callable[[Sequence[Batch], Plan], Terms]
MakeRecorder = Callable[[], "CudaRecorder"]


class CudaRecorder:
    """Runs and records functions on a CUDA stream of its own.

    All recordings share one pool of memory: replays never overlap, and nothing in the pool outlives a step but its
    terms, which are copied at once.
    """

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], Terms]) -> Terms:
        """Run a function before it is recorded: what libraries set up at the first use is no part of a recording."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            terms = function()
        current.wait_stream(self._stream)
        return terms

    def record(self, function: Callable[[], Terms]) -> Callable[[], Terms]:
        """Record a function without running it. A replay returns the same tensors, with new values, each time."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: the threads that read ahead may use CUDA meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            terms = function()

        def replay() -> Terms:
            graph.replay()
            return terms

        return replay


class StepGraphs:
    """The first step of each plan runs as it is, the second is recorded, and from then on the plan is replayed.

    step: a step, or the part of it that needs no other process, on the device. Shapes depend on the plan alone. What
    else differs from one step to the next is in the batches or in tensors that stay where they are; `clear` must be
    called when these are replaced. Where a step cannot be recorded, this is said once, and all run as they are.
    """

    def __init__(self, step: Step, make_recorder: MakeRecorder):
        self._step, self._make_recorder = step, make_recorder
        self._buffers: list[Batch] = []
        self._can_record = True
        self.clear()

    def clear(self) -> None:
        """Forget all recordings, which hold the addresses of the tensors that they used."""
        self._recorder = self._make_recorder()
        self._seen: set[Plan] = set()
        self._replays: dict[Plan, Callable[[], Terms]] = {}

    def __call__(self, batches: Sequence[Batch], plan: Plan) -> Terms:
        if plan not in self._seen or not self._can_record:
            self._seen.add(plan)
            return self._recorder.run(lambda: self._step(batches, plan))
        self._fill_buffers(batches)
        if plan not in self._replays:
            try:
                self._replays[plan] = self._recorder.record(lambda: self._step(self._buffers, plan))
            except RuntimeError as error:  # nothing of the step has run
                log.warning("no CUDA graphs: %s; the run goes on without", str(error).partition("\n")[0])
                self._can_record = False
                return self(batches, plan)
        terms = self._replays[plan]()
        # Copies, by one kernel: the next replay of this or another plan writes over the terms of this one.
        return dict(zip(terms, torch.stack(list(terms.values())).unbind(), strict=True))

    def _fill_buffers(self, batches: Sequence[Batch]) -> None:
        """All recordings read the same buffers, one for each micro-batch; a step needs no labels."""
        if not self._buffers:
            self._buffers = [Batch(torch.empty_like(b.x_BLD), torch.empty_like(b.index_B)) for b in batches]
        for buffer, batch in zip(self._buffers, batches, strict=True):
            buffer.x_BLD.copy_(batch.x_BLD)
            buffer.index_B.copy_(batch.index_B)
