"""How requests over HTTP are tried again: which answers say so, and the one loop that does it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from realcustom.preprocessing.errors import DataFault
from realcustom.retry import RetrySettings

T = TypeVar("T")

LONGEST_WAIT = 60.0  # seconds that a Retry-After is obeyed for


def is_passing(status: int) -> bool:
    """Whether an HTTP status says to try again: a server's own troubles, those of proxies before it, too many requests."""
    return status in (408, 425, 429) or status >= 500


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header (a number of seconds, or a date) asks for, 0 .. `LONGEST_WAIT`."""
    if value is None:
        return 0.0
    if value.strip().isdigit() and value.isascii():  # not a superscript 2, a digit that is no number
        return min(float(value), LONGEST_WAIT)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):  # no date; one beyond the calendar's end
        return 0.0
    return max(0.0, min(seconds, LONGEST_WAIT))


def no_answer(error: Exception) -> str:
    """In words, that a request came to an error of the transport or took too long."""
    name = "TimeoutError" if isinstance(error, (TimeoutError, httpx.TimeoutException)) else type(error).__name__
    return f"no answer ({name})"


class TryAgain(Exception):
    """An answer that may be another one later. After the last try it is raised as it is.

    `after`: seconds that the server asks for. `fault`: what it can be of the row's if it lasts; None: nothing.
    """

    def __init__(self, what: str, after: float = 0.0, fault: DataFault | None = None):
        super().__init__(what)
        self.what, self.after, self.fault = what, after, fault


async def with_retries(action: Callable[[], Awaitable[T]], retries: RetrySettings) -> T:
    """`action()`, called again for as long as it raises TryAgain, in all `retries.attempts` times."""
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
    """What `work` returns, run in an event loop of its own: the caller may be inside one (a notebook)."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
