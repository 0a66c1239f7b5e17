"""Errors that the user reads: the thing, the cause and the cure, on one line."""


class FeaturemillError(Exception):
    """An error that a user can act on: one line with the thing, the cause and the cure. Exit code 1."""


class UsageError(FeaturemillError):
    """A wrong option or name. Exit code 2."""
