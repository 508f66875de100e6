"""The processes of a run, as the launcher made them."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from data.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among `size`; `device` is where it computes."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join_world(device: str) -> World:
    """Join the processes that `deepspeed`, `torchrun` or `accelerate launch` started; plain `python` is a world of one.

    device: "auto" (CUDA when there is one), "cpu" or "cuda".
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no CUDA device; set engine.device=cpu or auto")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 0))
    )
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        torch_device = torch.device("cuda", local_rank)
    else:
        torch_device = torch.device("cpu")
        os.environ["DS_ACCELERATOR"] = "cpu"
        if "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, len(os.sched_getaffinity(0)) // (local_size or size))
            os.environ["OMP_NUM_THREADS"] = str(threads)  # Accelerate would choose by itself, with a warning
            torch.set_num_threads(threads)
    backend = "nccl" if device == "cuda" else "gloo"
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend)
    assert dist.get_world_size() == size, (dist.get_world_size(), size)
    return World(rank, size, local_rank, torch_device)
