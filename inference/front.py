"""What stands before every route: a request's id, security headers, one line in the access log, and bugs as 500."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from realcustom.inference.error_answers import answer_of
from realcustom.inference.errors import BadRequest, Cancelled, Internal
from realcustom.inference.metrics import UNOBSERVED, Observer

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
}


@dataclass(kw_only=True)
class Record:
    """What the access log says of a request: numbers and names, never a prompt, a picture or a key."""

    request_id: str
    key: str | None = None
    model: str | None = None
    steps: int | None = None
    images: int | None = None
    queue_seconds: float | None = None
    compute_seconds: float | None = None
    error: str | None = None


def record_of(request: Request) -> Record:
    """The record of this request, for its route to fill in."""
    record: Record = request.scope["state"]["record"]
    return record


class Front:
    """ASGI middleware around the application.

    Args:
        app: the application.
        has_proxy: a proxy before this server puts X-Request-Id into requests and answers, as Ray Serve's does.
        observer: counts requests.
        access_log: write a line of JSON to stderr for each request; not a log line of ours, so that programs can read it.
    """

    def __init__(self, app: ASGIApp, *, has_proxy: bool, access_log: bool, observer: Observer = UNOBSERVED) -> None:
        self.app, self.has_proxy, self.access_log, self.observer = app, has_proxy, access_log, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        valid = given is not None and REQUEST_ID.fullmatch(given) is not None
        record = Record(request_id=given if given is not None and valid else uuid.uuid4().hex)
        scope.setdefault("state", {})["record"] = record
        started, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                if not self.has_proxy:
                    headers["X-Request-Id"] = record.request_id
            await send(message)

        async def receive_or_gone() -> Message:
            try:
                return await receive()
            except Exception:  # a server whose client is gone may raise its own (Ray Serve: TaskCancelledError)
                return {"type": "http.disconnect"}

        try:
            if given is not None and not valid:
                refused = BadRequest("X-Request-Id: 1 to 64 letters, digits, '.', '_' and '-'", "X-Request-Id")
                await answer_of(refused)(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive_or_gone, send_with_headers)
        except Exception as error:
            logger.error("%s %s failed", scope["method"], scope["path"][:200], exc_info=error)
            record.error = Internal.kind
            if status == 0:
                await answer_of(Internal())(scope, receive, send_with_headers)
        finally:
            status, seconds = status or Cancelled.status, time.monotonic() - started
            self.observer.observe("requests_total", 1, str(status))
            if record.model is not None:
                self.observer.observe("request_seconds", seconds)
            if self.access_log:
                sys.stderr.write(_line(scope, record, status, seconds))


def _line(scope: Scope, record: Record, status: int, seconds: float) -> str:
    route: Any = scope.get("route")  # the pattern, not the path: a path may hold what a client sent by mistake
    said = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"],
        "route": getattr(route, "path", "unknown"),
        "status": status,
        "seconds": round(seconds, 4),
        **{name: value for name, value in vars(record).items() if value is not None},
    }
    return json.dumps(said) + "\n"
