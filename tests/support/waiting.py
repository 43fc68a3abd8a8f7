"""Waits for what other processes do: for a condition, not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], seconds: float, said: Callable[[], str] = str) -> None:
    """Returns once `condition` holds. Raises AssertionError, with what was `said`, where it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, said()
        time.sleep(0.1)
