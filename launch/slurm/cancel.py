"""End submitted runs: what runs writes a checkpoint first, what waits is taken from the queue."""

import sys
from pathlib import Path

# This checkout first: an environment shared by two checkouts must not import the code of the other one.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import time

from tqdm import tqdm

from data.errors import UserError
from launch.cli import run
from launch.slurm.jobs import FOLDER, cancel, live_jobs, note, read_queue

EXAMPLES = """\
examples:
  python launch/slurm/cancel.py runs/celeba_base-biglearn_u
  python launch/slurm/cancel.py runs/table3                         all runs of a sweep
  python launch/slurm/cancel.py --now runs/mnist_case1-vae

The same launch/slurm/submit.py goes on with a run where it was.
"""
_POLL_S = 1.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python launch/slurm/cancel.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    running = [job for job in live.values() if queue[job].state == "RUNNING" and not options.now]
    waiting = [job for job in live.values() if job not in running]
    if waiting:
        cancel(waiting)
    if running:
        cancel(running, "--signal=USR1")  # its ranks get it, and not the script
    with tqdm(total=len(live), unit=" jobs", desc="wait until they are gone", leave=False, disable=None) as bar:
        while left := sum(job in queue for job in live.values()):
            bar.update(len(live) - left - bar.n)
            time.sleep(_POLL_S)
            queue = read_queue()
    return 0


if __name__ == "__main__":
    run(main)
