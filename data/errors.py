"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A user's mistake: one plain line, the cause and the mend. Commands print it and exit with code 2."""
