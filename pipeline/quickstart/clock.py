"""The parts of a run of the quickstart: their headings in the log, and how long each took."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class Clock:
    """Logs each part as it starts and keeps its duration."""

    def __init__(self, parts: int) -> None:
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []  # parts that an earlier run had finished
        self._parts, self._begun, self._start = parts, 0, time.monotonic()

    @contextlib.contextmanager
    def heading(self, text: str) -> Iterator[None]:
        """One of the numbered parts in the log."""
        self._begun += 1
        logger.info("[%d/%d] %s", self._begun, self._parts, text)
        yield

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Seconds of the block, kept under `name`."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)

    def total(self) -> float:
        """Seconds since the clock was made."""
        return round(time.monotonic() - self._start, 2)
