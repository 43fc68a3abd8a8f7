"""Answers by `Idempotency-Key` where several processes speak HTTP: one keeper, which each of them asks. No Ray here.

A process claims a key before it draws. The keeper gives the answer where there is one, has others wait for who draws, and
gives the key to the next when the first fails, or says no more that it is at work.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from realcustom.inference.errors import RequestError
from realcustom.inference.idempotency import Answers, Name, other_request
from realcustom.inference.leases import LEASE_SECONDS, RENEW_SECONDS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the keeper says of a key: `answer`, or (None) that the asker is to make it; or that it is another request's."""

    answer: bytes | None = None
    refused: bool = False


@dataclass(kw_only=True, eq=False)
class _Entry:
    digest: bytes  # of what was asked
    maker: str
    since: float  # time.monotonic(), as below
    renewed: float
    answer: bytes | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # there is an answer, or the maker has given up


class AnswerKeeper:
    """The answers of all processes; the oldest go first. Used from one event loop.

    Args:
        max_bytes: of all answers together.
        seconds: how long an answer is kept.
        lease_seconds: who makes one counts as gone when it says nothing for so long.
    """

    def __init__(self, max_bytes: int, seconds: float, lease_seconds: float = LEASE_SECONDS) -> None:
        self.max_bytes, self.seconds, self.lease_seconds = max_bytes, seconds, lease_seconds
        self._entries: collections.OrderedDict[Name, _Entry] = collections.OrderedDict()

    async def claim(self, name: Name, digest: bytes, maker: str) -> Claim:
        """The answer of a key, as soon as there is one; or the key itself, for `maker` to make it."""
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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, entry.renewed + self.lease_seconds - now)):
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


class Keeper(Protocol):
    """An `AnswerKeeper`, in this process or another."""

    async def claim(self, name: Name, digest: bytes, maker: str) -> Claim:
        """See `AnswerKeeper`, as all others."""
        ...

    async def renew(self, name: Name, maker: str) -> None: ...

    async def keep(self, name: Name, digest: bytes, maker: str, answer: bytes) -> None: ...

    async def give_up(self, name: Name, maker: str) -> None: ...


class SharedAnswers:
    """As `idempotency.Answers`, for all processes that have one keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self._local = keeper, Answers(0, 0.0)  # of this process: who waits for whom; it keeps nothing

    async def once(self, name: Name, asked: bytes, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """See `idempotency.Answers.once`. Raises what the keeper raises too."""
        return await self._local.once(name, asked, lambda: self._once(name, hashlib.sha256(asked).digest(), make))

    async def _once(self, name: Name, digest: bytes, make: Callable[[], Awaitable[bytes]]) -> bytes:
        maker = uuid.uuid4().hex
        try:
            claim = await self.keeper.claim(name, digest, maker)
            if claim.refused:
                raise other_request()
            if claim.answer is not None:
                return claim.answer
            async with self._renewed(name, maker):
                answer = await make()
            await self._keep(name, digest, maker, answer)
            return answer
        except BaseException:
            with contextlib.suppress(Exception):  # a keeper that is gone has nothing to give up
                await self.keeper.give_up(name, maker)
            raise

    async def _keep(self, name: Name, digest: bytes, maker: str, answer: bytes) -> None:
        """Have it kept; where that fails the client gets it none the less."""
        try:
            await self.keeper.keep(name, digest, maker, answer)
        except Exception as error:
            logger.warning("an answer was not kept, a retry with its Idempotency-Key may draw again: %s", error)

    @contextlib.asynccontextmanager
    async def _renewed(self, name: Name, maker: str) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(RENEW_SECONDS)
                with contextlib.suppress(RequestError):  # a keeper that is lost is logged when the answer is there
                    await self.keeper.renew(name, maker)

        renewing = asyncio.ensure_future(renew())
        try:
            yield
        finally:
            renewing.cancel()
