"""The bodies of requests: each read within a size and a time, whatever its client declares, and so many at once."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from realcustom.inference.errors import BodyTooLarge, BodyTooSlow, QueueFull


class Bodies:
    """Reads bodies. A client may send its own slowly; those that do must not take all places of a process.

    Args:
        most: bodies that are read at the same time.
    """

    def __init__(self, most: int) -> None:
        self.most, self._reading = most, 0

    async def read(self, request: Request, limit: int, timeout_seconds: float) -> bytes:
        """The request's body; reading stops at the limit, also if the client declared a smaller length.

        Raises BodyTooLarge before reading where the declared length is over the limit, BodyTooSlow after the time, QueueFull
        where too many others are being read.
        """
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > 15 or int(declared) > limit):
            raise BodyTooLarge(f"the body's {declared[:20]} bytes are over this server's limit of {limit}")
        if self._reading >= self.most:
            raise QueueFull(f"the bodies of {self._reading} other requests are still being sent; try again later", 1)
        self._reading += 1
        try:
            return await _read(request, limit, timeout_seconds)
        finally:
            self._reading -= 1


async def _read(request: Request, limit: int, timeout_seconds: float) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise BodyTooLarge(f"the body is over this server's limit of {limit} bytes")
    except TimeoutError as error:
        raise BodyTooSlow(
            f"{len(body)} bytes of the body arrived within {timeout_seconds:g} s, not all; send it faster or smaller"
        ) from error
    return bytes(body)
