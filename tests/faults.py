"""Start a command of launch/ with a fault: FAULT="ACTION TARGET COUNT [RANK]" python tests/faults.py ARGUMENTS

The command is train.py, or what COMMAND names in the environment.

When TARGET (module:qualified.name) is called the COUNT-th time, by RANK if one is given,

    kill      the process is killed as by kill -9
    kill+0.1  so it is, a tenth of a second later
    SIGUSR1   (or another signal) the process gets it, twice
    nan       the call returns terms of which the first sample's are not a number (TARGET is a sample_terms)
    nans      so do all calls from then on
"""

import functools
import importlib
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install(action: str, target: str, count: str, rank: str | None = None) -> None:
    if rank not in (None, os.environ.get("RANK", "0")):
        return
    module, _, path = target.partition(":")
    owner = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def faulty(*arguments, **options):
        nonlocal calls
        calls += 1
        if action in ("nan", "nans"):
            terms = original(*arguments, **options)
            if calls == int(count) or (action == "nans" and calls > int(count)):
                for value_B in terms.values():
                    value_B[0] = value_B[0] * float("nan")
            return terms
        if calls == int(count) and action.startswith("kill+"):
            threading.Timer(float(action.removeprefix("kill+")), os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif calls == int(count):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.Signals[action])
        return original(*arguments, **options)

    setattr(owner, name, faulty)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    install(*os.environ["FAULT"].split())
    sys.argv[0] = str(ROOT / "launch" / os.environ.get("COMMAND", "train.py"))
    runpy.run_path(sys.argv[0], run_name="__main__")
