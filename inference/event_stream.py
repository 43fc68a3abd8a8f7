"""An HTTP answer of server-sent events that ends its work as soon as the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from realcustom.inference.errors import Cancelled

T = TypeVar("T")
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy keeps events back


class EventStream(Response):
    """Sends chunks as they come; `on_end` is called however it ends, and may be called twice.

    Starlette's own streaming answer does not listen for the client's end on servers that say by an error of `send` that
    it is gone: behind a proxy, as Ray Serve's, such an error never comes.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], on_end: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        self.chunks, self.on_end = chunks, on_end
        self.status_code, self.background = 200, None
        self.media_type = "text/event-stream"
        self.init_headers({**HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the chunks end or the client is gone."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.on_end()  # first: what follows waits
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await self.chunks.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self.on_end()  # before the client sees the end: its next request must find this one's place free
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_wanted(receive: Receive, making: Awaitable[T], cancelled: asyncio.Event | None = None) -> T:
    """What `making` gives; it is ended when the client goes away or `cancelled` is set. The body must have been read.

    Raises Cancelled where it was ended, and what `making` raises.
    """
    making, gone = asyncio.ensure_future(making), asyncio.ensure_future(until_gone(receive))
    unwanted = asyncio.ensure_future((cancelled or asyncio.Event()).wait())
    tasks = (making, gone, unwanted)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if making.done():  # first: what was made must not be lost
            return making.result()
        raise Cancelled("the request was cancelled" if unwanted.done() else "the client went away")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_gone(receive: Receive) -> None:
    """Return when the client has gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
