"""Retries of transient failures. Imports nothing heavy: it is a setting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from realcustom.errors import UsageError

T = TypeVar("T")

LONGEST_WAIT = 30.0  # seconds between two tries


@dataclass(frozen=True, kw_only=True)
class RetrySettings:
    """Tries of a read or write with transient failures."""

    attempts: int = 8  # tries in all; with the waits between them about a minute and a half
    backoff: float = 1.0  # seconds before the second try, doubled for each one after it, at most 30

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise UsageError(f"attempts must be at least 1, got {self.attempts}")
        if self.backoff < 0:
            raise UsageError(f"backoff must be at least 0 seconds, got {self.backoff}")

    def wait(self, attempt: int) -> float:
        """Seconds between try number `attempt` (from 1) and the one after it."""
        return min(self.backoff * (1 << (attempt - 1)), LONGEST_WAIT)


def retry(action: Callable[[], T], retries: RetrySettings, is_transient: Callable[[Exception], bool]) -> T:
    """`action()`, retried while its error is transient."""
    for attempt in range(1, retries.attempts + 1):
        try:
            return action()
        except Exception as error:
            if attempt == retries.attempts or not is_transient(error):
                raise
            time.sleep(retries.wait(attempt))
    raise AssertionError("attempts is at least 1")
