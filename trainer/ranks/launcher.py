"""What the launcher says of this process.

`deepspeed`, `torchrun` and `accelerate launch` set RANK and its kin; srun sets names of its own; plain `python` sets
nothing and is a world of one.
"""

import os
import re
import shutil
import subprocess

from data.errors import RankError, printable

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
REMEDY = f"start the command with a launcher (deepspeed, torchrun, srun), or alone after `unset {' '.join(_NAMES)}`"
_PORTS = 2**16
_SCONTROL_S = 10


def adopt_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) of this process; afterwards RANK and its kin are set for every library.

    Empty variables count as unset. RankError for what no launcher leaves so.
    """
    for name in [name for name in os.environ if name in _NAMES and not os.environ[name].strip()]:
        del os.environ[name]
    if "RANK" not in os.environ and _number("SLURM_STEP_NUM_TASKS", 1) > 1:  # a step that srun started
        job, step = _number("SLURM_JOB_ID", 0), _number("SLURM_STEP_ID", 0)
        os.environ |= {
            "RANK": str(_number("SLURM_PROCID")),
            "WORLD_SIZE": str(_number("SLURM_STEP_NUM_TASKS")),
            "LOCAL_RANK": str(_number("SLURM_LOCALID")),
            "MASTER_ADDR": os.environ.get("MASTER_ADDR") or first_host(_text("SLURM_STEP_NODELIST")),
            # One for each step, below the ports that the kernel gives to clients.
            "MASTER_PORT": os.environ.get("MASTER_PORT") or str(10_000 + (97 * job + step) % 20_000),
        }
    size = _number("WORLD_SIZE", 1)
    if size > 1:  # no default would be right
        _text("MASTER_ADDR")
        if not 0 < _number("MASTER_PORT") < _PORTS:
            raise RankError(f"MASTER_PORT is {os.environ['MASTER_PORT']}, which is no port: {REMEDY}")
    else:
        os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it; one rank a node may come without
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK")
    for name, number in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        if number >= size:
            raise RankError(f"{name} is {number}, which is none of the {size} ranks of WORLD_SIZE: {REMEDY}")
    return rank, size, local_rank


def _text(name: str) -> str:
    if not os.environ.get(name):
        raise RankError(f"{name} is not set, although the environment says that there are several ranks: {REMEDY}")
    return os.environ[name]


def _number(name: str, default: int | None = None) -> int:
    """What a variable counts; None: it must be there."""
    if default is not None and not os.environ.get(name):
        return default
    text = _text(name)
    if not re.fullmatch(r"[0-9]{1,20}", text.strip()):
        raise RankError(f"{name} is {printable(text)!r}, which is no number: {REMEDY}")
    return int(text)


def first_host(nodelist: str) -> str:
    """The first host of SLURM's notation, as gpu003 of "gpu[003-012,20],login1"."""
    if shutil.which("scontrol"):
        command = ["scontrol", "show", "hostnames", nodelist]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SCONTROL_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        else:
            if done.returncode == 0 and done.stdout.split():
                return done.stdout.split()[0]
    return parse_first_host(nodelist)


def parse_first_host(nodelist: str) -> str:
    """As `first_host`, without SLURM: of the first element the first name of each of its brackets."""
    element = re.match(r"([^,\[]|\[[^\]]*\])*", nodelist.strip())[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", element)
