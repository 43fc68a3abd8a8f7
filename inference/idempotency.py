"""Answers by `Idempotency-Key`: a request that is sent again is answered with the first one's answer."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from realcustom.inference.errors import BadRequest, Conflict

KEY = re.compile(r"[\x21-\x7e]{1,255}")
Name = tuple[str | None, str]  # the bearer key's name, and the client's Idempotency-Key


@dataclass(kw_only=True)
class _Entry:
    digest: bytes  # of what was asked
    task: asyncio.Task[bytes]
    since: float  # time.monotonic()
    waiting: int = 0


def other_request() -> Conflict:
    """The error of a key that belongs to another request."""
    return Conflict("Idempotency-Key: it was used for another request; give each its own", "Idempotency-Key")


class Answers:
    """The answers of one process, as bytes; the oldest go first. For several see `shared_answers.py`.

    Args:
        max_bytes: of all answers together.
        seconds: how long an answer is kept.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.max_bytes, self.seconds = max_bytes, seconds
        self._entries: collections.OrderedDict[Name, _Entry] = collections.OrderedDict()

    async def once(self, name: Name, asked: bytes, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer that `make` gives, or gave to the same request before; several wait for one.

        What fails is not kept. If nobody waits any more, `make` is cancelled.

        Args:
            asked: the route and the body; another one under the same name is refused.
        Raises:
            BadRequest: the key's form. Conflict: the key belongs to another request. And what `make` raises.
        """
        if KEY.fullmatch(name[1]) is None:
            raise BadRequest("Idempotency-Key: 1 to 255 ASCII characters without spaces", "Idempotency-Key")
        self._forget()  # what has become too old
        digest = hashlib.sha256(asked).digest()
        entry = self._entries.get(name)
        if entry is None:
            task = asyncio.ensure_future(make())
            entry = self._entries[name] = _Entry(digest=digest, task=task, since=time.monotonic())
            task.add_done_callback(lambda _: self._done(name, entry))
        elif entry.digest != digest:
            raise other_request()
        entry.waiting += 1
        try:
            return await asyncio.shield(entry.task)
        finally:
            entry.waiting -= 1
            if not entry.waiting and not entry.task.done():
                entry.task.cancel()
                if self._entries.get(name) is entry:
                    del self._entries[name]
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await entry.task

    def _done(self, name: Name, entry: _Entry) -> None:
        failed = entry.task.cancelled() or entry.task.exception() is not None
        if failed and self._entries.get(name) is entry:
            del self._entries[name]
        self._forget()

    def _forget(self) -> None:
        """Remove what is too old, and the oldest while there is too much."""
        done = [(name, entry) for name, entry in self._entries.items() if entry.task.done()]
        held = sum(len(entry.task.result()) for _, entry in done)
        for name, entry in done:
            if held > self.max_bytes or time.monotonic() - entry.since > self.seconds:
                held -= len(entry.task.result())
                del self._entries[name]
