"""Python programs in processes of their own; none is left at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol


class StartProgram(Protocol):
    """Starts `python ARGUMENTS` in a session of its own, its errors among its output."""

    def __call__(
        self, *arguments: str, output: IO[str] | int = subprocess.PIPE, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """The process; `variables` are set in its environment."""
        ...


@contextlib.contextmanager
def programs(folder: Path) -> Iterator[StartProgram]:
    """Programs that run in `folder`; those that still run after the block are killed."""
    started: list[subprocess.Popen[str]] = []

    def call(
        *arguments: str, output: IO[str] | int = subprocess.PIPE, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore", **(variables or {})},
            start_new_session=True,
            cwd=folder,
        )
        started.append(process)
        return process

    try:
        yield call
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
