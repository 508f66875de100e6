"""End submitted runs: what runs writes a checkpoint first, what waits is taken from the queue."""

import contextlib
import math
import sys
import time
from pathlib import Path

try:
    from launch.commands.cli import Parser, run
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from tqdm import tqdm

from data.errors import UserError
from launch.slurm.jobs import FOLDER, Queued, cancel, live_jobs, note, read_queue

EXAMPLES = """\
examples:
  python launch/slurm/cancel.py runs/celeba_base-biglearn_u
  python launch/slurm/cancel.py runs/table3                         all runs of a sweep
  python launch/slurm/cancel.py --now runs/mnist_case1-vae

The same launch/slurm/submit.py goes on with a run where it was.
"""
_POLL_S = 1.0
_AGAIN_S = 15.0  # a signal is lost where the ranks are not there yet


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, or folders of runs")
    parser.add_argument("--now", action="store_true", help="as scancel does: the checkpoint has SLURM's KillWait")
    options = parser.parse_args(arguments)

    queue = read_queue()
    runs = {history.parent.parent for folder in options.folders for history in folder.rglob(f"{FOLDER}/history")}
    live = {(path, name): job for path in sorted(runs) for name, job in live_jobs(path, queue).items()}
    if not live:
        where = ", ".join(map(str, options.folders))
        raise UserError(f"no job of {where} waits or runs; launch/slurm/status.py shows all")
    for (path, name), job in live.items():
        note(path, name, job, "cancel")  # which keeps it from being queued again
        print(f"{path}: {name}, job {job}, was {queue[job].state}")
    jobs = list(live.values())
    asked = -math.inf
    with tqdm(total=len(jobs), unit=" jobs", desc="wait until they are gone", leave=False, disable=None) as bar:
        while left := [job for job in jobs if job in queue]:
            if time.monotonic() - asked > _AGAIN_S:
                _end([job for job in left if queue[job].state != "COMPLETING"], queue, options.now)
                asked = time.monotonic()
            bar.update(len(jobs) - len(left) - bar.n)
            time.sleep(_POLL_S)
            queue = read_queue()
    return 0


def _end(jobs: list[str], queue: dict[str, Queued], at_once: bool) -> None:
    """Tell the ranks of what runs, and take what waits from the queue."""
    running = [job for job in jobs if queue[job].state == "RUNNING" and not at_once]
    if waiting := [job for job in jobs if job not in running]:
        cancel(waiting)
    if running:
        with contextlib.suppress(UserError):  # those that have ended meanwhile; the others have got it
            cancel(running, "--signal=USR1")  # the ranks, and not the script


if __name__ == "__main__":
    run(main)
