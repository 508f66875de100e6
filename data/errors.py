"""The exceptions that end a command in order, with an exit code of their own, and the text that goes into them."""


class UserError(Exception):
    """A user's mistake: one plain line, the cause and the remedy. Commands print it and exit with code 2."""


class RankError(UserError):
    """A mistake that one rank of several may meet alone: each that meets it prints it."""


class LostRankError(Exception):
    """Another process of the run is gone, or has not come in time. Starting again goes on."""


class NonFiniteError(Exception):
    """Numbers are not finite any more. Commands print it and exit with code 3."""


def printable(text: str, length: int = 200) -> str:
    """At most `length` characters of text that a file brought, without control characters or lone surrogates."""
    shown = text if len(text) <= length else f"{text[:length]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
