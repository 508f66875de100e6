"""What differs between clusters: a YAML file that a person writes once."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from data.errors import UserError
from data.values import override, read_mapping, typed

Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\n\r]*$")]  # what becomes one line of a script


class Profile(BaseModel, extra="forbid", frozen=True):
    """One cluster. What is None is left to its defaults. Its lines of shell run as they are: a profile is trusted."""

    # Which machines, for whom, for how long; as sbatch understands them.
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    time: Line | None = None
    constraint: Line | None = None
    memory: Line | None = None  # of a node
    cpus_per_task: int | None = Field(None, gt=0)  # of a rank
    gpus: Literal["gpus-per-node", "gres"] = "gpus-per-node"  # the option by which this cluster asks for GPUs
    gpu_type: Line | None = None
    sbatch: tuple[Line, ...] = ()  # further options, as --exclusive

    # What a job needs before it can train.
    modules: tuple[Line, ...] = ()
    environment: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")], Line] = {}
    setup: tuple[Line, ...] = ()  # lines of shell
    network_interface: Line | None = None  # by which the ranks talk to each other
    container: Line | None = None  # what stands before the command of a rank
    python: Line = sys.executable  # inside the container

    # How a job ends and begins again.
    warning_seconds: int = Field(120, ge=1)  # before the end of its time, to write a checkpoint
    restarts: int = Field(3, ge=0)  # in a row that came to nothing


def load_profile(path: str | None, overrides: Sequence[str] = ()) -> Profile:
    """The profile of a file, None for all defaults; overrides as "partition=debug". UserError for what is not right."""
    values = read_mapping(Path(path), "a profile", "configs/clusters/") if path else {}
    for text in overrides:
        if "=" not in text:
            raise UserError(f"{text!r} is no override; write slurm.key=value, as slurm.partition=debug")
        override(values, text, Profile, prefix="slurm.")
    try:
        return Profile.model_validate(typed(values, Profile))
    except UserError as error:
        raise UserError(f"{path or 'slurm'}: {error}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, Profile.model_fields, n=1, cutoff=0.0)
            raise UserError(f"{path or 'slurm'}: unknown key {where}; did you mean {near[0]}?") from None
        raise UserError(f"{path or 'slurm'}: {where}: {fault['msg']} (it is {fault['input']!r})") from None
