"""The body of a request: read within a size and a time, whatever the client declares."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from realcustom.inference.errors import BodyTooLarge, BodyTooSlow


async def read_body(request: Request, limit: int, timeout_seconds: float) -> bytes:
    """The request's body; reading stops at the limit, also if the client declared a smaller length.

    Raises BodyTooLarge before reading where the declared length is over the limit, BodyTooSlow after the time.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 15 or int(declared) > limit):
        raise BodyTooLarge(f"the body's {declared[:20]} bytes are over this server's limit of {limit}")
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
