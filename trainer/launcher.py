"""What the launcher says of this process: `deepspeed`, `torchrun` and `accelerate launch` set RANK and its kin;
srun sets names of its own; plain `python` sets nothing and is a world of one."""

import os
import re


def adopt_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) of this process; afterwards RANK and its kin are set for every library."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # a step that srun started
        job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        os.environ |= {
            "RANK": os.environ["SLURM_PROCID"],
            "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": os.environ["SLURM_LOCALID"],
            "MASTER_ADDR": os.environ.get("MASTER_ADDR") or first_host(os.environ["SLURM_STEP_NODELIST"]),
            # One for each step, below the ports that the kernel gives to clients.
            "MASTER_PORT": os.environ.get("MASTER_PORT") or str(10_000 + (97 * job + step) % 20_000),
        }
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    rank, size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return rank, size, local_rank


def first_host(nodelist: str) -> str:
    """The first host of SLURM's notation: "gpu[003-012,20],login1" is gpu003, "a,b" is a."""
    head, _, rest = nodelist.partition("[")
    if "," in head or not rest:
        return head.split(",")[0]
    ranges, _, tail = rest.partition("]")
    return head + re.split("[-,]", ranges)[0] + tail.split(",")[0].split("[")[0]
