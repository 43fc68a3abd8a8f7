"""Ends a process whose step hangs, so that it is replaced as a lost worker is."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

logger = logging.getLogger(__name__)


class StepWatch:
    """Looks from a thread whether the step under way takes too long; what is beside steps is not watched."""

    def __init__(self, minutes: float) -> None:
        """Watch for this long; 0 = for ever."""
        self._seconds = 60 * minutes
        self._started: float | None = None
        self._done = threading.Event()

    def __enter__(self) -> StepWatch:
        if self._seconds:
            threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A context that is one step."""
        self._started = time.monotonic()
        try:
            yield
        finally:
            self._started = None

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            started = self._started
            if started is not None and time.monotonic() - started > self._seconds:
                break
        else:
            return
        logger.error(
            "a step has not ended for %g minutes (train.step_timeout_minutes): this worker ends, the run goes on from its last "
            "checkpoint with the same command. Where its threads are:",
            self._seconds / 60,
        )
        faulthandler.dump_traceback(file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # a thread in native code can be ended in no other way
