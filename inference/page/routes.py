"""Routes of the page's files. They are read once, and each has a route of its own: no part of a request names a file."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response

FILES = Path(__file__).parent / "files"
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def add_page(api: FastAPI) -> None:
    """Have `api` answer `/` with the page, and `/page/NAME` with its other files."""
    for file in sorted(FILES.iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        answer = _answer_with(file.read_bytes(), MEDIA_TYPES[file.suffix])
        api.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False)


def _answer_with(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Answers with these bytes, or with 304 where the browser holds them: it asks each time, since names never change."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        held = request.headers.get("if-none-match", "")
        if tag in (one.strip().removeprefix("W/") for one in held.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer
