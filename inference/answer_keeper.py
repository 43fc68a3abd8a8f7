"""Keeps answers by `Idempotency-Key`, within a number of bytes and a time, for one process or for several. No Ray here.

Who answers claims a key first. The keeper gives the answer where there is one, has others wait for who makes it, and gives the
key to the next when the first fails, or says no more that it is at work.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from dataclasses import dataclass, field
from typing import Protocol

from realcustom.inference.leases import LEASE_SECONDS

HOLD_SECONDS = 5.0  # for which a claim waits for another's answer at most, before it is told to ask again
Name = tuple[str | None, str]  # the bearer key's name, and the client's Idempotency-Key


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the keeper says of a key: `answer`, or (None) that the asker is to make it, or one of the two below."""

    answer: bytes | None = None
    refused: bool = False  # it is another request's
    pending: bool = False  # another makes it: ask again


@dataclass(kw_only=True, eq=False)
class _Entry:
    digest: bytes  # of what was asked
    maker: str
    since: float  # time.monotonic(), as below
    renewed: float
    answer: bytes | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # there is an answer, or the maker has given up


class Keeper(Protocol):
    """An `AnswerKeeper`, in this process or another."""

    async def claim(self, name: Name, digest: bytes, maker: str) -> Claim:
        """See `AnswerKeeper`, as all others."""
        ...

    async def renew(self, name: Name, maker: str) -> None: ...

    async def keep(self, name: Name, digest: bytes, maker: str, answer: bytes) -> None: ...

    async def give_up(self, name: Name, maker: str) -> None: ...


class AnswerKeeper:
    """The answers; the oldest go first. Used from one event loop.

    Args:
        max_bytes: of all answers together.
        seconds: how long an answer is kept.
        lease_seconds: who makes one counts as gone when it says nothing for so long.
    """

    def __init__(self, max_bytes: int, seconds: float, lease_seconds: float = LEASE_SECONDS) -> None:
        self.max_bytes, self.seconds, self.lease_seconds = max_bytes, seconds, lease_seconds
        self._entries: collections.OrderedDict[Name, _Entry] = collections.OrderedDict()

    async def claim(self, name: Name, digest: bytes, maker: str) -> Claim:
        """The answer of a key, or the key itself, for `maker` to make it; waits at most HOLD_SECONDS for either."""
        until = time.monotonic() + HOLD_SECONDS
        while True:
            self._forget()
            now, entry = time.monotonic(), self._entries.get(name)
            if entry is None:
                self._entries[name] = _Entry(digest=digest, maker=maker, since=now, renewed=now)
                return Claim()
            if entry.digest != digest:
                return Claim(refused=True)
            if entry.answer is not None:
                return Claim(answer=entry.answer)
            if now >= until:
                return Claim(pending=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(entry.renewed + self.lease_seconds, until) - now)):
                    await entry.ended.wait()

    async def renew(self, name: Name, maker: str) -> None:
        """It is being made."""
        if (entry := self._of(name, maker)) is not None:
            entry.renewed = time.monotonic()

    async def keep(self, name: Name, digest: bytes, maker: str, answer: bytes) -> None:
        """It was made; no effect where the key is another's by now. A keeper begun since the claim does not know the key."""
        now = time.monotonic()
        entry = self._entries.setdefault(name, _Entry(digest=digest, maker=maker, since=now, renewed=now))
        if entry.maker == maker:
            entry.answer = answer
            entry.ended.set()
            self._forget()

    async def give_up(self, name: Name, maker: str) -> None:
        """It will not be made; no effect on one that was."""
        entry = self._of(name, maker)
        if entry is not None and entry.answer is None:
            self._remove(name)

    def _of(self, name: Name, maker: str) -> _Entry | None:
        entry = self._entries.get(name)
        return entry if entry is not None and entry.maker == maker else None

    def _remove(self, name: Name) -> None:
        self._entries.pop(name).ended.set()

    def _forget(self) -> None:
        """Remove what is too old or whose maker is gone, and the oldest while there is too much."""
        now, held = time.monotonic(), sum(len(entry.answer or b"") for entry in self._entries.values())
        for name, entry in list(self._entries.items()):
            if entry.answer is None:
                gone = now - entry.renewed >= self.lease_seconds
            else:
                gone = held > self.max_bytes or now - entry.since > self.seconds
            if gone:
                held -= len(entry.answer or b"")
                self._remove(name)
