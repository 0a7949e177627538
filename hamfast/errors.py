"""Errors in one sentence, and warnings about data."""


class HamfastError(Exception):
    """Bad input.

    The message is one sentence: what was expected, and what was found. The command line prints it
    without a traceback.
    """


class DataWarning(UserWarning):
    """Something about the data is odd, and results may be wrong because of it.

    The message says what is odd, and the likely cause.

    The command line prints these as ``warning: ...``.
    """
