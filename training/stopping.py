"""A run that is asked to end: it finishes its step, writes a checkpoint and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopped(Exception):
    """A run ended because it was asked to; the same call goes on after `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}, which is kept in a checkpoint")
        self.step = step


@contextlib.contextmanager
def stop_at_sigterm(stop: threading.Event) -> Iterator[None]:
    """A context in which the first SIGTERM sets `stop`; a second one ends the process. Of the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
