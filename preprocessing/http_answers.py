"""What an HTTP answer says about trying again."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

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
