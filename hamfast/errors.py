"""What a user hears: errors in one sentence, and warnings about data."""


class HamfastError(Exception):
    """Bad input. The command line prints the message alone; as a Python exception it is an ordinary one."""


class DataWarning(UserWarning):
    """Something about the data is odd, and results may be wrong because of it; says what and the likely cause.

    The command line prints these as ``warning: ...``.
    """
