"""The error a user can cause: one sentence that says what was expected and what was found."""


class HamfastError(Exception):
    """Bad input. The command line prints the message alone; as a Python exception it is an ordinary one."""
