"""Files written beside the training: in one thread, one after the other, in the order in which they were given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Background:
    """A queue of writes. An error of one is raised in the training thread, at the next call or at the end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)  # after an error too: what has begun is completed
        if error is None:
            self.check()

    def put(self, write: Callable[[], None]) -> None:
        """Queue a write."""
        self.check()
        self._under_way.append(self._thread.submit(write))

    def check(self) -> None:
        """Raise the error of a write that has ended with one."""
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft().result()

    def wait(self) -> None:
        """Wait until all that was queued is written. Raises the error of a write."""
        while self._under_way:
            self._under_way.popleft().result()
