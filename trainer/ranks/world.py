"""The processes of a run, as the launcher made them, and how they agree."""

import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from data.errors import LostRankError, NonFiniteError, RankError, UserError
from trainer.ranks.launcher import REMEDY, adopt_environment

# A rank that is gone is noticed at once over TCP; one that hangs takes the others down after this time.
_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class World:
    """This process among `size`; `device` is where it computes.

    control: the group in which the ranks agree. It is on the CPU, so that agreeing never waits for a device;
    None is the default group.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def max_over_ranks(self, *values: int) -> list[int]:
        """The largest of each value on any rank, known to all.

        Every step has one, so it takes log2(size) messages one after the other; gloo's all_reduce, a ring, 2 size.
        """
        values_N, distance = torch.tensor(values), 1
        while distance < self.size:  # each rank then knows of this many before it
            found_N = torch.empty_like(values_N)
            sending = dist.isend(values_N, (self.rank + distance) % self.size, group=self.control)
            dist.recv(found_N, (self.rank - distance) % self.size, group=self.control)
            sending.wait()
            values_N, distance = torch.maximum(values_N, found_N), 2 * distance
        return values_N.tolist()

    def gather(self, value: Any) -> list:
        """The value of every rank, known to all."""
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    @contextmanager
    def agreed(self):
        """A mistake that any rank meets inside is raised on all of them, so that none waits for another.

        Inside, ranks may do different things, but nothing collective.
        """
        error = None
        try:
            yield
        except UserError as met:
            error = str(met)
        except OSError as met:
            error = f"{met.filename or 'a file'}: {met.strerror}"
        errors = self.gather(error)
        met_by = [rank for rank, error in enumerate(errors) if error]
        if met_by:
            alone = f"rank {met_by[0]}: " if 0 not in met_by else ""
            raise UserError(alone + errors[met_by[0]])

    def require_same(self, **values: Any) -> None:
        """UserError that names a value which is not the same on all ranks."""
        of_ranks = self.gather(values)
        for rank, others in enumerate(of_ranks):
            for name, value in of_ranks[0].items():
                if others[name] != value:
                    raise UserError(
                        f"rank {rank} has {name} {others[name]}, rank 0 has {value}: "
                        "all ranks must see the same files and be started alike"
                    )


@contextmanager
def joined_world(device: str, timeout_seconds: int = _TIMEOUT_SECONDS):
    """The world as a context; all ranks leave it together, unless one has failed in a way that others cannot know."""
    world = join_world(device, timeout_seconds)
    try:
        yield world
    except (UserError, NonFiniteError):
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        if not isinstance(error, dist.DistError) and "/gloo/" not in text:
            raise
        cause = text.partition("] ")[2].partition(". ")[0] or text  # without the place in gloo's source
        raise LostRankError(f"rank {world.rank} on {socket.gethostname()} lost another rank ({cause})") from error
    dist.destroy_process_group()


def join_world(device: str, timeout_seconds: int = _TIMEOUT_SECONDS) -> World:
    """Join the processes that the launcher started; plain `python` is a world of one.

    device: "auto" (CUDA when there is one), "cpu" or "cuda". timeout_seconds: that a rank waits for the others.
    """
    timeout = timedelta(seconds=timeout_seconds)
    rank, size, local_rank = adopt_environment()
    device = device_type(device)
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            here = f"on {socket.gethostname()} a rank sees {torch.cuda.device_count()} CUDA devices"
            remedy = "start one rank a device, each seeing all of its node (no --gpus-per-task), or engine.device=cpu"
            raise RankError(f"{here}, and there are more ranks than that: {remedy}")
        torch.cuda.set_device(local_rank)
        # cuDNN would prepare an attention of its own for each shape, of which plans have hundreds: minutes at a start.
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch_device = torch.device("cuda", local_rank)
    else:
        torch_device = torch.device("cpu")
    os.environ["DS_ACCELERATOR"] = device
    backend = "nccl" if device == "cuda" else "gloo"
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        try:
            dist.init_process_group(backend, timeout=timeout)
        except (ValueError, dist.DistError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            cause = str(error).splitlines()[0]
            remedy = f"if there are no others, {REMEDY}"
            if "EADDRINUSE" in cause or "address already in use" in cause.lower():
                remedy = (
                    "another program has the port: choose a free one with --master_port (deepspeed), --master-port"
                    " (torchrun), --main_process_port (accelerate launch) or MASTER_PORT (srun, python)"
                )
            raise RankError(f"rank {rank} of {size} cannot join the others at {where}: {cause}; {remedy}") from error
    assert (dist.get_rank(), dist.get_world_size()) == (rank, size), "torch sees another world than the launcher made"
    control = dist.new_group(backend="gloo", timeout=timeout) if device == "cuda" else None
    world = World(rank, size, local_rank, torch_device, control)
    world.require_same(world_size=size)
    _share_cores(world)
    return world


def device_type(device: str) -> str:
    """What "auto" is here, or "cpu" or "cuda" as asked for. RankError where CUDA is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RankError("engine.device is cuda, but torch sees no CUDA device; set engine.device=cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _share_cores(world: World) -> None:
    """Each rank computes with its part of the cores that it shares with other ranks."""
    here = (socket.gethostname(), sorted(os.sched_getaffinity(0)))
    sharing = world.gather(here).count(here)
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(here[1]) // sharing)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Accelerate would choose by itself, with a warning
        if threads != torch.get_num_threads():
            # Not without need: it also makes MKL open its threads inside torch's own, in every product of an attention.
            torch.set_num_threads(threads)
