"""The one kind of error that the user can correct. Everything else is a bug and keeps its trace."""

from __future__ import annotations


class UsageError(ValueError):
    """A mistake in the input: a setting, a path, a table, a request. The message names it and how to correct it.

    Only this becomes one line and exit status 2 on the command line, and a 4xx over HTTP. A plain ValueError, a
    KeyError or an ArrowInvalid is a bug in this project.
    """


class MissingFile(UsageError, FileNotFoundError):
    """There is no file or folder at a path or URI."""
