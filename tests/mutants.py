"""Bugs that the tests must see: each is put into a copy of the checkout, and its tests must fail there.

    python -m tests.mutants [NAME ...] [--list] [--sound] [--jobs N] [--repo DIR] [--json FILE]

A mutation is found by its text, wherever in the product's folders it stands. Without names
all are tried, one line each; exit code 1 if the tests pass with one of them (SURVIVED), or if it cannot be
tried (BROKEN).
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "model", "biglearn_vae", "trainer", "evaluation", "reproduction", "serving", "launch")
TIMEOUT_S = 600  # of the tests of one mutation; a hang is seen, too
_PYTEST = ("-m", "pytest", "-x", "-q", "-rfEp", "-m", "", "-p", "no:cacheprovider")


class BrokenError(Exception):
    """A mutation that cannot be tried, and why."""


def files_of(repo: Path) -> list[str]:
    """Files of a checkout that git knows or would add, relative to it."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in listed if name and (repo / name).is_file()})


def product_of(repo: Path) -> dict[str, str]:
    """The text of each file of the product, by its path in the checkout."""
    paths = (path for room in ROOMS for path in (repo / room).rglob("*") if path.is_file())
    return {
        str(path.relative_to(repo)): path.read_text(errors="replace")
        for path in paths
        if "__pycache__" not in path.parts
    }


def place_of(mutation: Mutation, product: Mapping[str, str]) -> str:
    """The file of the product that holds the text. BrokenError unless it stands there exactly once."""
    places = [name for name, text in product.items() for _ in range(text.count(mutation.old))]
    if len(places) != 1:
        where = f": {', '.join(places)}" if places else ""
        raise BrokenError(f"its text stands {len(places)} times in the product{where}")
    return places[0]


@dataclass(frozen=True)
class Outcome:
    """What became of a run. verdict: "caught", "SURVIVED" or "BROKEN"; by: the test that failed, or what else it is."""

    name: str
    verdict: str
    seconds: float
    by: str = ""

    def __str__(self) -> str:
        by = f"  by {self.by}" if self.verdict == "caught" else f"  {self.by}" if self.by else ""
        return f"{self.verdict:8}  {self.name}  {self.seconds:.0f} s{by}"


def try_mutation(mutation: Mutation, repo: Path) -> Outcome:
    """Run the tests of a mutation in a copy of the checkout that has it."""
    began = time.monotonic()
    try:
        place = place_of(mutation, product_of(repo))
        with copied(repo) as copy:
            path = copy / place
            path.write_text(path.read_text().replace(mutation.old, mutation.new))
            code, output = run_tests(copy, mutation.tests)
        verdict, by = judge(mutation.tests, code, output)
    except BrokenError as error:
        verdict, by = "BROKEN", str(error)
    return Outcome(mutation.name, verdict, time.monotonic() - began, by)


def try_sound(tests: tuple[str, ...], repo: Path) -> Outcome:
    """Run tests in a copy of the checkout as it is, where they must pass."""
    began = time.monotonic()
    with copied(repo) as copy:
        code, output = run_tests(copy, tests)
    verdict, by = judge(tests, code, output)
    verdict = "sound" if verdict == "SURVIVED" else "BROKEN"
    return Outcome(shlex.join(tests), verdict, time.monotonic() - began, by)


def judge(tests: Sequence[str], code: int | None, output: str) -> tuple[str, str]:
    """The verdict on a run of pytest, and by what. code: None after a time-out."""
    if code is None:
        return "caught", f"a hang of {TIMEOUT_S} s"
    files = {test.partition("::")[0] for test in tests}
    lines = re.findall(r"^(PASSED|FAILED|ERROR) (\S+\.py(?:::.*?)?)(?: - .*)?$", output, re.MULTILINE)
    of_tests = [(word, test) for word, test in lines if test.partition("::")[0] in files]
    if code == 0 and of_tests:  # none where all are skipped
        return "SURVIVED", ""
    failed = [test for word, test in of_tests if word != "PASSED"]
    if code in (1, 2) and failed:
        return "caught", failed[0]
    last = (output.strip().splitlines() or ["no output"])[-1]
    return "BROKEN", f"exit code {code} of pytest, and no test that failed: {last}"


@contextmanager
def copied(repo: Path) -> Iterator[Path]:
    """A copy of a checkout, without what git ignores, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        for name in files_of(repo):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_running: set[int] = set()  # the process groups of pytest


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """pytest's exit code, None after a time-out, and its output. Nothing of its process group is left."""
    command = [sys.executable, *_PYTEST, *tests]
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},  # not the checkout that is installed
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _running.add(process.pid)
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _running.discard(process.pid)
            _kill(process.pid)
            process.wait()
        file.seek(0)
        return code, file.read()


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def run_all(work: Sequence[Callable[[], Outcome]], jobs: int) -> list[Outcome]:
    """Do all of it, so many at once, and say what became of each."""
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(one) for one in work]):
                outcomes.append(future.result())
                print(f"{len(outcomes):2}/{len(work)}  {outcomes[-1]}", flush=True)
        except BaseException:  # Ctrl-C, too
            pool.shutdown(wait=False, cancel_futures=True)
            for group in list(_running):
                _kill(group)
            raise
    return outcomes


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutations; default: all")
    parser.add_argument("--list", action="store_true", help="show where each mutation stands, and its tests")
    parser.add_argument("--sound", action="store_true", help="run these tests without a mutation: all must pass")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once; default: %(default)s")
    parser.add_argument("--repo", type=Path, default=ROOT, metavar="DIR", help="the checkout; default: this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    options = parser.parse_args(arguments)
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no mutation is called {', '.join(unknown)}; --list shows all")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    chosen, repo = [known[name] for name in options.names or known], options.repo.resolve()
    if options.list:
        product = product_of(repo)
        for mutation in chosen:
            print(f"{mutation.name}  {place_of(mutation, product)}  {shlex.join(mutation.tests)}")
        return 0
    if options.sound:
        work = [lambda tests=tests: try_sound(tests, repo) for tests in dict.fromkeys(m.tests for m in chosen)]
    else:
        work = [lambda mutation=mutation: try_mutation(mutation, repo) for mutation in chosen]
    outcomes = run_all(work, options.jobs)
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    counts = {word: sum(o.verdict == word for o in outcomes) for word in ("sound", "caught", "SURVIVED", "BROKEN")}
    said = f"{counts['sound']} sound" if options.sound else f"{counts['caught']} caught, {counts['SURVIVED']} survived"
    print(said + (f", {counts['BROKEN']} broken" if counts["BROKEN"] else ""))
    return int(counts["SURVIVED"] + counts["BROKEN"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
