"""How far submitted runs are: what SLURM does with them, what they have learned, what they have met."""

import sys
from pathlib import Path

try:
    from launch.commands.cli import Parser, run
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError
from launch.slurm.jobs import FOLDER, Event, Queued, jobs_of, read_queue

EXAMPLES = """\
examples:
  python launch/slurm/status.py                                     all below runs/
  python launch/slurm/status.py runs/celeba_base-biglearn_u
  python launch/slurm/status.py runs/table3                         a sweep

state is SLURM's while the job is in its hands; then done, or how it ended. starts counts how often it was started.
"""
_ENDS = {
    "0": "done",
    "2": "mistake (2)",
    "3": "not finite (3)",
    "75": "stopped (75)",
}


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="runs, or folders of runs; default: runs")
    options = parser.parse_args(arguments)

    queue = read_queue()
    folders = options.folders or [Path("runs")]
    runs = {history.parent.parent for folder in folders for history in folder.rglob(f"{FOLDER}/history")}
    if not runs:
        where = ", ".join(map(str, folders))
        raise UserError(f"nothing below {where} was submitted: see launch/slurm/submit.py --help")
    lines = [("run", "job", "number", "state", "where", "starts", "learned from", "images/s", "left")]
    for path in sorted(runs):
        lines += [(str(path), *_words(path, name, *found, queue)) for name, found in jobs_of(path).items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _words(path: Path, name: str, job: str, events: list[Event], queue: dict[str, Queued]) -> tuple[str, ...]:
    """One line of the table."""
    starts = sum(event.what == "start" for event in events)
    queued = queue.get(job)
    state, where = (queued.state, queued.where) if queued else (_end(events), "")
    return (name, job, state, where, str(starts), *_learned(path, name, is_running=bool(queued)))


def _end(events: list[Event]) -> str:
    """How a job ended that SLURM has forgotten."""
    code = next((event.details[0] for event in reversed(events) if event.what == "end" and event.details), None)
    what = [event.what for event in events if event.what != "submit"]
    if code != "0" and "cancel" in what:
        return "cancelled"
    if "start" not in what:
        return "never started"
    if what[-1] != "end" or code is None:
        return "lost"
    return _ENDS.get(code, f"failed ({code})")


def _learned(path: Path, name: str, is_running: bool) -> tuple[str, str, str]:
    """Of a training: images so far of how many, speed, and the time that is left."""
    from trainer.config import load_config
    from trainer.metrics.json_lines import read_lines

    file = path / FOLDER / f"{name}.yaml"
    if not file.exists():
        return "", "", ""
    try:
        config = load_config(file)
    except UserError:  # of another version of this program: no reason to say nothing of the other runs
        return "?", "", ""
    lines = read_lines(Path(config.run_dir) / "metrics.jsonl")
    images, total = lines[-1]["images"] if lines else 0, config.total_images
    learned = f"{images:,} of {total:,}"
    speed = lines[-1].get("images_per_second") if lines else None
    if not is_running or not speed or images >= total:
        return learned, "", ""
    minutes = round((total - images) / speed / 60)
    return learned, f"{speed:,.0f}", f"{minutes // 60}:{minutes % 60:02d} h"


if __name__ == "__main__":
    run(main)
