"""What every command of launch/ does alike: exit codes, and errors of the user in one line."""

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from data.errors import UserError


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call main(arguments) and leave with the exit code it returns (None: 0).

    A UserError becomes one line on stderr and exit code 2, with a traceback only if --debug is among the
    arguments (main does not get to see it). An interrupt from the keyboard becomes 130. Any other exception
    is a bug of ours and keeps its traceback.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        sys.exit(main(arguments))
    except UserError as error:
        if len(arguments) < len(sys.argv) - 1:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
