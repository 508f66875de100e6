"""The exceptions that mean: the user can mend this."""


class UserError(Exception):
    """A user's mistake: one plain line, the cause and the mend. Commands print it and exit with code 2."""


class RankError(UserError):
    """A mistake that one rank of several may meet alone: each that meets it prints it."""
