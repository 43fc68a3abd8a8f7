"""Retries of HTTP requests: which answers ask for one, and the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from realcustom.retry import RetrySettings

T = TypeVar("T")

LONGEST_WAIT = 60.0  # seconds that a Retry-After is obeyed for


def is_passing(status: int) -> bool:
    """Whether an HTTP status says to try again: an error of the server or of a proxy, or too many requests."""
    return status in (408, 425, 429) or status >= 500


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header (a number of seconds, or a date) asks for, 0 .. `LONGEST_WAIT`."""
    if value is None:
        return 0.0
    if value.strip().isdigit() and value.isascii():  # isascii: excludes digits such as a superscript 2
        return min(float(value), LONGEST_WAIT)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):  # no date; one beyond the calendar's end
        return 0.0
    return max(0.0, min(seconds, LONGEST_WAIT))


def no_answer(error: Exception) -> str:
    """The message for a request that failed in transport or took too long."""
    name = "TimeoutError" if isinstance(error, (TimeoutError, httpx.TimeoutException)) else type(error).__name__
    return f"no answer ({name})"


class TryAgain(Exception):
    """A transient failure. After the last try this error is raised unchanged.

    `after`: seconds that the server asks for.
    """

    def __init__(self, what: str, after: float = 0.0):
        super().__init__(what)
        self.what, self.after = what, after


async def with_retries(action: Callable[[], Awaitable[T]], retries: RetrySettings) -> T:
    """`action()`, called again while it raises TryAgain, at most `retries.attempts` times."""
    for attempt in range(1, retries.attempts + 1):
        try:
            return await action()
        except TryAgain as error:
            if attempt == retries.attempts:
                error.what += f", tried {attempt} times"
                raise
            await asyncio.sleep(max(retries.wait(attempt), error.after))
    raise AssertionError("attempts is at least 1")


def run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, run in an event loop of its own: the caller may be inside one (a notebook)."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
