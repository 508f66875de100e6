"""What SLURM knows of jobs, and what the directory of a run remembers of them."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data.errors import UserError, printable

FOLDER = "slurm"  # of the scripts, logs and the history, in the directory of a run
_HISTORY = "history"


@dataclass(frozen=True)
class Event:
    """A line of the history. what: "submit", "start", "end" or "cancel"; details: what else the line says."""

    name: str
    job: str
    what: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Queued:
    """A job that SLURM has not forgotten yet. state: as RUNNING, PENDING, COMPLETING; where: its nodes, or why not."""

    state: str
    where: str


def read_history(run: Path) -> list[Event]:
    """What its jobs have met, the oldest first; empty for a run that was never submitted."""
    try:
        lines = (run / FOLDER / _HISTORY).read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    parts = (line.split() for line in lines)
    return [Event(part[1], part[2], part[3], tuple(part[4:])) for part in parts if len(part) > 3]


def note(run: Path, name: str, job: str, *what: str) -> None:
    """Add a line to the history, as the jobs themselves do."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _HISTORY).open("a") as file:
        file.write(" ".join([datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), name, job, *what]) + "\n")


def jobs_of(run: Path) -> dict[str, tuple[str, list[Event]]]:
    """By name, in the order of submission: the last job of that name, and what it has met."""
    history = read_history(run)
    last: dict[str, str] = {}
    for event in history:
        if event.what == "submit":
            last.pop(event.name, None)
            last[event.name] = event.job
    # A job can start before its submission is on record.
    return {
        name: (job, [event for event in history if (event.name, event.job) == (name, job)])
        for name, job in last.items()
    }


def live_jobs(run: Path, queue: dict[str, Queued]) -> dict[str, str]:
    """The jobs of a run that have not ended, by name."""
    return {name: job for name, (job, _) in jobs_of(run).items() if job in queue}


def read_queue() -> dict[str, Queued]:
    """This user's jobs that wait, run or end just now, by job, the places of an array each on its own."""
    done = _call(["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%N|%r"])
    jobs = {}
    for line in done.splitlines():
        job, state, nodes, reason = line.split("|", 3)
        jobs[job] = Queued(state, nodes or reason)
    return jobs


def submit(script: Path, *options: str) -> str:
    """Hand a script to SLURM; the job's number."""
    return _call(["sbatch", "--parsable", *options, str(script)]).strip().split(";")[0]


def cancel(jobs: Sequence[str], *options: str) -> None:
    _call(["scancel", *options, *jobs])


def _call(command: list[str]) -> str:
    """The output of one of SLURM's programs; UserError with SLURM's own words when it refuses."""
    if not shutil.which(command[0]):
        raise UserError(f"{command[0]} is not on this machine: go to a login node of the cluster")
    # sbatch hands these on to the job, where they would overrule the script.
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("SBATCH_", "SLURM_", "SRUN_"))}
    ours |= {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=ours, timeout=300)
    except subprocess.TimeoutExpired:
        raise UserError(f"SLURM has not answered {command[0]} within 5 minutes: try again later") from None
    if done.returncode:
        words = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in done.stderr.splitlines() if ": " in line]
        cause = words[-1] if words else f"exit code {done.returncode}"
        remedy = next((remedy for sign, remedy in _MENDS.items() if sign in cause), "")
        raise UserError(f"SLURM refuses {command[0]}: {printable(cause)}{remedy}")
    return done.stdout


_MENDS = {
    "Invalid partition": "; `sinfo` lists them, slurm.partition= or the profile names one",
    "node configuration is not available": "; `sinfo -o '%P %D %c %m %G %f'` shows what the nodes have:"
    " --nodes, --gpus-per-node and the profile ask for it",
    "account": "; slurm.account= or the profile names one",
    "qos": "; slurm.qos= or the profile names one",
    "time limit": "; slurm.time= or the profile sets it, `sinfo` shows the longest",
    "job array": ": SLURM's MaxArraySize is smaller; make several sweeps of it",
    "More processors requested than permitted": "; `sinfo -o '%P %D %c %m %G %f'` shows what the nodes have",
}
