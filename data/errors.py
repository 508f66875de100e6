"""The one exception that means: the user can mend this. And how foreign text gets into one plain line."""


class UserError(Exception):
    """A user's mistake: one plain line, the cause and the mend. Commands print it and exit with code 2."""


def printable(text: str, length: int = 200) -> str:
    """At most `length` characters of text that a file brought, without control characters or lone surrogates."""
    shown = text if len(text) <= length else f"{text[:length]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
