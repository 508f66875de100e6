"""Standard streams of which a failure costs their words alone, never the work of the program that speaks."""

import io
import os
import select
import sys


class _Forgiving(io.FileIO):
    """What cannot be written, because a disk is full or the reader gone, is dropped. failure: why, of the last time."""

    failure: OSError | None = None

    def write(self, content) -> int:
        try:
            while (written := super().write(content)) is None:  # a stream that does not block
                select.select([], [self], [])
        except OSError as error:
            self.failure = error
            return len(content)
        return written


def open_streams() -> None:
    """Replace this process's own output streams, if nobody else has, by ones that forgive.

    A closed one leads nowhere: a file of the work that got its number would get its words. Characters that the
    encoding lacks are written as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            how = {"encoding": "utf-8", "line_buffering": True}
            if stream:
                how = {key: getattr(stream, key) for key in ("encoding", "line_buffering", "write_through")}
            buffer = io.BufferedWriter(_Forgiving(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, errors="backslashreplace", **how))


def failure_of(stream) -> str | None:
    """Why some of the words were lost; None when none were, or when their reader has had enough, as `head`."""
    failure = getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failure", None)
    return failure.strerror if failure and not isinstance(failure, BrokenPipeError) else None
