"""Signals that ask a run to stop. This module imports nothing slow: it listens before torch is there."""

import os
import signal
import time
from contextlib import suppress

# Those that tell of a fault in the process itself, and those that by default do not end it.
_OTHERS = {
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP),
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGKILL, signal.SIGSTOP),  # which nobody can handle
}
_AGAIN_S = 1.0  # launchers repeat a terminal's SIGINT: what comes sooner is none of a person


class StopRequest:
    """Remembers the first signal that would have ended the process: of a terminal, a launcher, a cluster.

    The loop looks at `signal_name` after each step. Further signals change nothing, but a second Ctrl-C ends the
    process at once.
    """

    def __init__(self):
        self.signal: int | None = None
        self._came = 0.0

    @property
    def signal_name(self) -> str | None:
        """As SIGTERM; a real-time signal has no name of its own."""
        if self.signal is None:
            return None
        return signal.Signals(self.signal).name if self.signal in set(signal.Signals) else f"signal {self.signal}"

    def listen(self) -> "StopRequest":
        """From here on signals no longer kill this process; those that are ignored already, as under nohup, stay so."""
        for number in signal.valid_signals() - _OTHERS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame) -> None:
        if self.signal is None:
            self.signal, self._came = number, time.monotonic()
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                with suppress(OSError):  # print cannot be called while it is at work
                    os.write(2, b"\nstopping after this step; Ctrl-C once more ends the run at once\n")
        elif number == signal.SIGINT and time.monotonic() > self._came + _AGAIN_S:
            raise KeyboardInterrupt
