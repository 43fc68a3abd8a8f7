"""One run at a time in a folder: a lock of the operating system, which ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from realcustom.errors import UsageError
from realcustom.store import refusals

LOCK = ".running"  # in the folder; it holds the number of the process that ran last


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A context in which no other run works in `folder`, which is made where there is none.

    Raises:
        UsageError: another run works there, or nothing can be written there.
    """
    with refusals("write", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UsageError(
                f"--output: process {lock.read().strip()} runs a quickstart in {folder}; wait for it, or name another folder"
            ) from error
        with refusals("write", str(folder / LOCK)):
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield
