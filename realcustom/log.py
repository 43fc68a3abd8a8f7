"""Logging of this project: one standard logger per module below `realcustom`, one format, one handler on stderr.

A library does not configure logging: nothing is shown until `configure` is called. The command line calls it, and so
does a worker in another process, with the level in its job.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
_OURS = logging.getLogger("realcustom")


class _Format(logging.Formatter):
    """`17:38:02 preprocessing: ingest: 2/2 units`; above info with the level: `17:38:02 preprocessing warning: ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a trace below it where there is one."""
        parts = record.name.split(".")
        package = parts[1] if len(parts) > 2 else "realcustom"
        level = "" if record.levelno == logging.INFO else f" {record.levelname.lower()}"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {package}{level}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`: a test, or Ray, may have replaced the stream."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        try:
            # not print(): Ray Train replaces it in its workers, and would show the line a second time
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def configure(level: str = "info") -> None:
    """Show our lines of `level` (one of `LEVELS`) and above on stderr, Python's warnings among them. May be called again."""
    _OURS.setLevel(level.upper())
    _OURS.propagate = False  # Ray Train's workers have a handler at the root, which would show each line again
    if not any(isinstance(handler, _Stderr) for handler in _OURS.handlers):
        handler = _Stderr()
        handler.setFormatter(_Format())
        _OURS.addHandler(handler)
    # it tells where it found keys and addresses; Ray Train's workers show that to the user
    logging.getLogger("botocore").setLevel(logging.WARNING)
    warnings.showwarning = _log_warning


@contextlib.contextmanager
def each_minute(logger: logging.Logger, line: Callable[[], str | None], seconds: float = 60.0) -> Iterator[None]:
    """A context in which `line()` is logged as a warning: at once, and then every `seconds` until it is None.

    For what may wait without an end, such as for a machine that a cluster may get.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(seconds) and (text := line()) is not None:
            logger.warning("%s", text)

    first = line()
    if first is None:
        yield
        return
    logger.warning("%s", first)
    thread = threading.Thread(target=repeat, name="each-minute", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(seconds)


class Progress:
    """Says each minute how much of something is done that is silent else: `WHAT: 12 of 40, 95 s left`."""

    def __init__(self, logger: logging.Logger, what: str, total: int, seconds: float = 60.0) -> None:
        self._logger, self._what, self._total, self._seconds = logger, what, total, seconds
        self._done = 0
        self._began = self._said = time.monotonic()

    def advance(self) -> None:
        """One of `total` is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._said >= self._seconds and self._done < self._total:
            self._said = now
            left = (now - self._began) / self._done * (self._total - self._done)
            self._logger.info("%s: %d of %d, %.0f s left", self._what, self._done, self._total, left)


def level() -> str:
    """The level that is shown now, for a worker's `configure`."""
    return logging.getLevelName(_OURS.getEffectiveLevel()).lower()


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _OURS.warning("%s", message)
