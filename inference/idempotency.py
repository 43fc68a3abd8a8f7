"""Answers by `Idempotency-Key`: a request that is sent again is answered with the first one's answer.

In a process the requests of one key wait for one task. It claims the key from a keeper, which has the answers of this process or
of several (`answer_keeper.py`), before it makes the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from realcustom.inference.answer_keeper import Keeper, Name
from realcustom.inference.errors import BadRequest, Conflict, RequestError
from realcustom.inference.leases import RENEW_SECONDS

logger = logging.getLogger(__name__)
KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(kw_only=True, eq=False)
class _Making:
    digest: bytes  # of what was asked
    task: asyncio.Task[bytes]
    waiting: int = 0


class Answers:
    """What the requests of a process are answered with. Used from one event loop."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self._making: dict[Name, _Making] = {}

    async def once(self, name: Name, asked: bytes, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer that `make` gives, or gave to the same request before; several wait for one.

        What fails is not kept. If nobody waits any more, `make` is cancelled.

        Args:
            asked: the route and the body; another one under the same name is refused.
        Raises:
            BadRequest: the key's form. Conflict: the key belongs to another request. And what `make` or the keeper raises.
        """
        if KEY.fullmatch(name[1]) is None:
            raise BadRequest("Idempotency-Key: 1 to 255 ASCII characters without spaces", "Idempotency-Key")
        digest = hashlib.sha256(asked).digest()
        making = self._making.get(name)
        if making is None:
            task = asyncio.ensure_future(self._made(name, digest, make))
            making = self._making[name] = _Making(digest=digest, task=task)
            task.add_done_callback(lambda _: self._end(name, making))
        elif making.digest != digest:
            raise _other_request()
        making.waiting += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.waiting -= 1
            if not making.waiting and not making.task.done():
                making.task.cancel()
                self._end(name, making)
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await making.task

    def _end(self, name: Name, making: _Making) -> None:
        if self._making.get(name) is making:
            del self._making[name]

    async def _made(self, name: Name, digest: bytes, make: Callable[[], Awaitable[bytes]]) -> bytes:
        maker = uuid.uuid4().hex
        try:
            claim = await self.keeper.claim(name, digest, maker)
            while claim.pending:
                claim = await self.keeper.claim(name, digest, maker)
            if claim.refused:
                raise _other_request()
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


def _other_request() -> Conflict:
    return Conflict("Idempotency-Key: it was used for another request; give each its own", "Idempotency-Key")
