"""The one kind of error that the user can correct. Everything else is a bug and keeps its trace."""

from __future__ import annotations

from collections.abc import Callable


class UsageError(ValueError):
    """A mistake in the input: a setting, a path, a table, a request. The message names it and how to correct it.

    Only this becomes one line and exit status 2 on the command line, and a 4xx over HTTP. A plain ValueError, a
    KeyError or an ArrowInvalid is a bug in this project.
    """


class MissingFile(UsageError, FileNotFoundError):
    """There is no file or folder at a path or URI."""


def require_all(*checks: Callable[[], object]) -> None:
    """Make every check; raise one UsageError with what each of them says, so that all can be corrected at once."""
    found: list[UsageError] = []
    for check in checks:
        try:
            check()
        except UsageError as error:
            found.append(error)
    if len(found) > 1:
        said = "; ".join(f"({number}) {error}" for number, error in enumerate(found, 1))
        raise UsageError(f"{len(found)} mistakes: {said}") from found[0]
    if found:
        raise found[0]
