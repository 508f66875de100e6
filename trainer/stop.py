"""Signals that ask a run to stop. This module imports nothing slow: it listens before torch is there."""

import signal


class StopRequest:
    """Remembers that SIGTERM or SIGUSR1 came (what clusters send before they take a machine away).

    The loop looks at `signal_name` after each step. Further signals change nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.signal_name: str | None = None

    def listen(self) -> "StopRequest":
        """From here on the signals no longer kill this process."""
        for number in self.SIGNALS:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name
