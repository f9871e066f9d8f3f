"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: a setting, a file, a full disk.

    Its message is one sentence that names the setting or file, the value found and what is
    accepted. The command line prints it without a traceback and exits with code 2; every other
    exception is a fault of the program and keeps its traceback.
    """


class ToldElsewhere(UserError):
    """A UserError of another process, which prints it: this one only ends."""
