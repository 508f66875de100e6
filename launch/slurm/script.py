"""The sbatch script of a job, as a person would write it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from launch.slurm.cluster import Profile
from launch.slurm.jobs import FOLDER

_BODY = Path(__file__).with_name("job.sh")


@dataclass(frozen=True)
class Job:
    """What runs once, however often it is interrupted.

    name: of its files. home: the directory below which they lie. runs: the directories it is of; more than the home
    itself are the places of an array. command: the script and its arguments as shell, which may name "$run".
    progress: as shell, the folder where new files show that something was gained.
    """

    name: str
    home: Path
    runs: tuple[Path, ...]
    command: str
    progress: str
    nodes: int
    ranks_per_node: int
    gpus_per_node: int = 0

    @property
    def is_array(self) -> bool:
        return self.runs != (self.home,)

    @property
    def script(self) -> Path:
        """Where it lies when it is submitted."""
        return self.home / FOLDER / f"{self.name}.sh"


def script(job: Job, profile: Profile, directory: Path, written_by: str) -> str:
    """The text of the file. directory: where the paths start. written_by: the command line, for the reader."""
    options = {
        "job-name": f"{job.home.name}-{job.name}",
        "chdir": str(directory),
        "output": f"{job.home / FOLDER}/".replace("%", "%%") + ("%a.log" if job.is_array else f"{job.name}.log"),
        "open-mode": "append",
        "signal": f"USR1@{profile.warning_seconds}",
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.ranks_per_node),
    }
    if job.gpus_per_node:
        kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
        options[profile.gpus] = ("gpu:" if profile.gpus == "gres" else "") + f"{kind}{job.gpus_per_node}"
    wishes = ("partition", "account", "qos", "time", "constraint")
    options |= {key: value for key in wishes if (value := getattr(profile, key))}
    options |= {"mem": profile.memory} if profile.memory else {}
    options |= {"cpus-per-task": str(profile.cpus_per_task)} if profile.cpus_per_task else {}
    lines = ["#!/bin/bash", f"# Written by: {written_by}"]
    lines += [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in profile.sbatch), ""]

    lines += [f"module load {shlex.quote(module)}" for module in profile.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    if profile.network_interface:
        interface = shlex.quote(profile.network_interface)
        lines.append(f"export NCCL_SOCKET_IFNAME={interface} GLOO_SOCKET_IFNAME={interface}")
    if profile.cpus_per_task:
        lines.append(f"export SRUN_CPUS_PER_TASK={profile.cpus_per_task}  # srun does not take it from the job")
    lines += ["export PYTHONUNBUFFERED=1", *profile.setup, ""]

    if job.is_array:
        lines += ["runs=(", *(f"    {shlex.quote(str(run))}" for run in job.runs), ")"]
        lines += ["run=${runs[$SLURM_ARRAY_TASK_ID]}", f'exec >>"$run/{FOLDER}/{job.name}.log" 2>&1']
    else:
        lines.append(f"run={shlex.quote(str(job.home))}")
    container = f"{profile.container} " if profile.container else ""
    lines += [
        f"name={job.name}",
        f"progress={job.progress}",
        f"restarts={profile.restarts}",
        f"command=({container}{shlex.quote(profile.python)} {job.command})",
    ]
    return "\n".join(lines) + "\n" + _BODY.read_text()
