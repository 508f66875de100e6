"""What every command of launch/ does alike: exit codes, warnings, and errors of the user in one line."""

import argparse
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from data.errors import LostRankError, RankError, UserError, printable
from launch.commands.orphans import end_with_launchers
from launch.commands.process import prepare_process
from launch.commands.streams import failure_of, open_streams

LOST, MISTAKE, NON_FINITE, REQUEUE = 1, 2, 3, 75  # exit codes
_MOST = 2**31 - 1  # of anything that a person counts
_LAST_WORD_S = 1.0  # launchers end all ranks when one has ended: the first gets time to speak


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call main(arguments) and leave with the exit code it returns (None: 0).

    A UserError becomes one line on stderr and exit code 2, with a traceback only if --debug is among the
    arguments (main does not get to see it); of several ranks only the first prints it. An interrupt from the
    keyboard becomes 130, a LostRankError 1, with a line of each rank. Any other exception is a bug of ours and keeps
    its traceback.
    """
    prepare_process()
    open_streams()
    end_with_launchers()
    arguments = [_with_home(argument) for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _refuse_another_checkout()
        _leave(main(arguments) or 0)
    except UserError as error:
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        say(f"error: {printable(str(error), 2000)}", by_each=isinstance(error, RankError))
        _leave(MISTAKE)
    except LostRankError as error:
        say(f"error: {error}; start the same command again", by_each=True)
        _leave(LOST)
    except KeyboardInterrupt:
        say("interrupted")
        _leave(130)


def _refuse_another_checkout() -> None:
    """UserError when the packages that Python finds are not those beside the script: neither would be what it seems."""
    script, packages = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[2]
    if not script.is_relative_to(packages):
        raise UserError(
            f"{script} is of another checkout than the packages that are installed, {packages}: start the script there,"
            " install this checkout (`make install`), or set PYTHONPATH to it"
        )


def _with_home(argument: str) -> str:
    """`--out=~/x` as `--out ~/x`, in which a shell has put the home already."""
    name, equals, value = argument.partition("=")
    return name + equals + os.path.expanduser(value) if name.startswith("--") and value.startswith("~") else argument


def _leave(code: int) -> NoReturn:
    """End this process, at once where torch is loaded.

    DeepSpeed never lets go of its process groups, and the threads of a gloo group that is still there when Python
    takes itself down abort the process ("terminate called without an active exception"): one run in three of a
    program of ten lines, on busy cores, and with it the exit code.
    """
    logging.shutdown()
    sys.stdout.flush()
    if why := failure_of(sys.stdout):
        print(f"warning: the standard output could not be written ({why})", file=sys.stderr)
    sys.stderr.flush()
    if "torch" not in sys.modules:
        sys.exit(code)
    os._exit(code)


def say(text: str, by_each: bool = False) -> None:
    """The last words of a command, on stderr: by the first rank for all, or by each rank for itself."""
    if by_each or not _is_another_rank():
        print(text, file=sys.stderr, flush=True)
    else:
        time.sleep(_LAST_WORD_S)


def _is_another_rank() -> bool:
    """Whether the first of several ranks speaks for this one. A RANK alone is a leftover."""
    of_launcher = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or ""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or ""
    return of_launcher.strip() not in ("", "0", "1") and rank.strip() not in ("", "0")


def show_warnings(rank: int) -> None:
    """Warnings of data/ and trainer/ go to stderr, a line each that leaves a progress bar whole."""
    from tqdm import tqdm

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            by = f" of rank {rank}" if rank else ""
            tqdm.write(f"{record.levelname.lower()}{by}: {record.getMessage()}", file=sys.stderr)

    for package in ("data", "trainer"):
        logging.getLogger(package).addHandler(Handler())


class Parser(argparse.ArgumentParser):
    """The arguments of every command.

    Help keeps the lines of what it is given. A negative number may be written in any form: argparse itself would take
    -1e-1 for an option.
    """

    def __init__(self, **how):
        prog = f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else None
        super().__init__(**{"prog": prog, "formatter_class": argparse.RawDescriptionHelpFormatter, **how})

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args(_told_from_options(args), namespace)

    def parse_known_intermixed_args(self, args=None, namespace=None):
        return super().parse_known_intermixed_args(_told_from_options(args), namespace)


def _told_from_options(arguments: Sequence[str] | None) -> list[str]:
    """Arguments with a space before what argparse does not know for a number.

    No option begins with a space, and int and float pass over it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return [f" {text}" if _is_unknown_number(text) else text for text in arguments]


def _is_unknown_number(text: str) -> bool:
    if not text.startswith("-") or re.fullmatch(r"-\d+|-\d*\.\d+", text):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def whole_number(text: str) -> int:
    """The type of an option that counts something, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {_MOST:,}")
    return int(text)


def seed(text: str) -> int:
    """The type of --seed, for argparse: the seeds that a configuration may have."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def find_device(name: str):
    """The torch.device that --device asks for; "auto" is the GPU where there is one."""
    import torch  # slow: only now, so that --help and mistakes answer at once

    has_cuda = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if has_cuda else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise UserError(f"no device is called {printable(name)}: set --device to auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{printable(name)} is no device of ours: set --device to auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"torch sees {torch.cuda.device_count()} CUDA devices, not {name}: set --device cpu or auto")
    return device
