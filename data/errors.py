"""The exceptions that end a command in order, with an exit code of their own."""


class UserError(Exception):
    """A user's mistake: one plain line, the cause and the mend. Commands print it and exit with code 2."""


class RankError(UserError):
    """A mistake that one rank of several may meet alone: each that meets it prints it."""


class NonFiniteError(Exception):
    """Numbers are not finite any more. Commands print it and exit with code 3."""
