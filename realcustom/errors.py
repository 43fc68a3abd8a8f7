"""The one kind of error that is the user's to mend. Everything else is a bug and keeps its trace."""

from __future__ import annotations


class UsageError(ValueError):
    """A mistake in what we were given: a setting, a path, a table, a request. The message names it and the way out.

    Only this becomes one line and exit status 2 on the command line, and a 4xx over HTTP. A plain ValueError, a KeyError or
    an ArrowInvalid is a bug of ours.
    """


class MissingFile(UsageError, FileNotFoundError):
    """There is no file or folder at a path or URI."""
