"""The requests that run, by their id: another request may cancel one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from realcustom.inference.errors import Conflict


class RunningRequest:
    """A request that can be cancelled at any time; `cancelled` is set then, on the event loop of its process."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()


class RunningRequests:
    """Those of one process. A key sees its own alone."""

    def __init__(self) -> None:
        self._running: dict[tuple[str | None, str], RunningRequest] = {}

    @contextlib.contextmanager
    def during(self, key: str | None, request_id: str) -> Iterator[RunningRequest]:
        """A request that runs while the block does. Raises Conflict if one of this id runs already."""
        name = (key, request_id)
        if name in self._running:
            raise Conflict(f"X-Request-Id: a request {request_id} runs already; give each its own", "X-Request-Id")
        self._running[name] = RunningRequest()
        try:
            yield self._running[name]
        finally:
            del self._running[name]

    def cancel(self, key: str | None, request_id: str) -> bool:
        """Cancel one; False: none of this id runs here."""
        running = self._running.get((key, request_id))
        if running is not None:
            running.cancelled.set()
        return running is not None
