"""Seconds that the parts of steps take, as the training thread sees them: where it waits for a GPU counts as the step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Adds up the seconds of named parts."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context whose time is added to a part's."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start

    def take(self) -> dict[str, float]:
        """The seconds of each part since the last time."""
        seconds, self._seconds = self._seconds, {}
        return seconds
