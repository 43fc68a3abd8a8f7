"""A run that is asked to end: it finishes its step, writes a checkpoint and ends."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.2


class Stopped(Exception):
    """A run ended because it was asked to; the same call goes on after `step`."""

    number: signal.Signals = signal.SIGTERM  # the signal that asked; SIGTERM too where it was none

    def __init__(self, step: int) -> None:
        super().__init__(
            f"stopped after step {step}, which is kept in a checkpoint" if step else "stopped before the first step"
        )
        self.step = step


@contextlib.contextmanager
def stop_at_signals(stop: threading.Event) -> Iterator[None]:
    """A context in which the first SIGTERM or SIGINT sets `stop`, and a second one does what it did before. Of the main thread
    alone. A signal that is ignored stays ignored.

    A Stopped that leaves it has the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers: list[int] = []
    ended = threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()
        numbers.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def say() -> None:  # in a thread: a handler may come in the middle of a line of the log
        while not ended.wait(_POLL_SECONDS):
            if numbers:
                logger.info("asked to end: what runs is finished and kept first; a second Ctrl-C ends at once")
                return

    before = {one: signal.getsignal(one) for one in SIGNALS if signal.getsignal(one) not in (signal.SIG_IGN, None)}
    wakeup = signal.set_wakeup_fd(-1)  # what ends a command some time after a Ctrl-C is not told of the first one
    for number in before:
        signal.signal(number, asked)
    threading.Thread(target=say, name="asked-to-end", daemon=True).start()
    try:
        yield
    except Stopped as stopped:
        if numbers:
            stopped.number = signal.Signals(numbers[0])
        raise
    finally:
        ended.set()
        if not numbers:
            restore()
