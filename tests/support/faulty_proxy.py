"""A store as it is on a bad day: an HTTP proxy on loopback before a real S3 API, which breaks requests by a seed.

What befalls a request depends on the seed, its method, its path and how often that was asked for, not on threads: the
same run meets the same faults. A fault is passing: no request is broken more than `LONGEST` times in a row.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import random
import re
import socket
import struct
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler

from tests.support.loopback import LoopbackServer, running

LONGEST = 3  # faults of one request in a row
_PIECES, _PAUSE = 8, 0.01  # a slow answer comes in so many pieces, with so many seconds between
_BUSY = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>'
_REFUSED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
)


class Trouble(enum.Enum):
    """What befalls a request."""

    BUSY = "busy"  # 503 SlowDown, the store having done nothing
    RESET = "reset"  # the connection is reset before the store hears of it
    LOST = "lost"  # the store does what it is asked, and the connection is reset before it can say so
    CUT = "cut"  # half of the answer's body, then a reset
    SHORT = "short"  # half of the answer's body, then an ordinary end
    SLOW = "slow"  # the body in pieces; no fault
    DENIED = "denied"  # 403 AccessDenied; never drawn


DRAWN = [trouble for trouble in Trouble if trouble is not Trouble.DENIED]


class FaultyProxy(LoopbackServer):
    """Passes requests on to `upstream` (host, port), a share `probability` of them in trouble, `down` always busy."""

    def __init__(self, upstream: tuple[str, int], seed: int, probability: float, down: str = "") -> None:
        super().__init__(_Handler)
        self.upstream, self.seed, self.probability, self.down = upstream, seed, probability, down
        self.met: Counter[tuple[str, Trouble]] = Counter()  # (method, trouble) -> how often
        self.sent: Counter[str] = Counter()  # path -> bytes of answers to GET
        self.upload_seconds = 0.0  # that the body of a PUT takes to arrive
        self.uploading: Counter[str] = Counter()  # path -> such bodies that have not arrived
        self._asked: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def trouble(self, method: str, path: str) -> Trouble | None:
        """What befalls this request."""
        request = f"{method} {re.sub('uploadId=[^&]*', 'uploadId', path)}"  # which the store draws
        if request == self.down:
            return Trouble.BUSY
        with self.lock:
            self._asked[request] += 1
            rng = random.Random(f"{self.seed} {request} {self._asked[request]}")
            trouble = rng.choice(DRAWN) if rng.random() < self.probability else None
            broken = trouble not in (None, Trouble.SLOW)
            if broken and self._in_a_row[request] == LONGEST:
                trouble, broken = None, False
            self._in_a_row[request] = self._in_a_row[request] + 1 if broken else 0
            if trouble is not None:
                self.met[method, trouble] += 1
        return trouble


def disturbed(
    upstream: tuple[str, int], seed: int, probability: float, down: str = ""
) -> contextlib.AbstractContextManager[FaultyProxy]:
    """The proxy, listening inside the block."""
    return running(FaultyProxy(upstream, seed, probability, down))


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"  # connections are kept, as a store's are

    def _pass_on(self) -> None:
        body = self._uploaded() if self.command == "PUT" and self.server.upload_seconds else self._body()
        trouble = self.server.trouble(self.command, self.path)
        if trouble is Trouble.RESET:
            return self._reset()
        if trouble is Trouble.BUSY:
            return self._answer(503, {"Content-Type": "application/xml"}, _BUSY)
        if trouble is Trouble.DENIED:
            return self._answer(403, {"Content-Type": "application/xml"}, _REFUSED)
        status, headers, data = self._ask(body)
        if trouble is Trouble.LOST:
            return self._reset()
        whole = self.command == "HEAD" or trouble is None or not data
        if whole:
            return self._answer(status, headers, data)
        self._head(status, headers, len(data))
        if trouble is Trouble.SLOW:
            size = -(-len(data) // _PIECES)
            for start in range(0, len(data), size):
                self.wfile.write(data[start : start + size])
                time.sleep(_PAUSE)
            return None
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True
        return self._reset() if trouble is Trouble.CUT else None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _uploaded(self) -> bytes:
        uploading, path = self.server.uploading, self.path.partition("?")[0]
        with self.server.lock:
            uploading[path] += 1
        try:
            time.sleep(self.server.upload_seconds)
            return self._body()
        finally:
            with self.server.lock:
                uploading[path] -= 1

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size)
            if len(body) < size:
                raise ConnectionError(f"{self.path}: the client ended in the middle of its request")
            return body
        data = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return data

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
        try:
            connection.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self._head(status, headers, len(data))
        if self.command == "GET":
            with self.server.lock:
                self.server.sent[self.path] += len(data)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, headers: dict[str, str], size: int) -> None:
        self.send_response_only(status)
        plain = {name.lower(): value for name, value in headers.items()}
        told = plain.get("content-length", "0") if self.command == "HEAD" else str(size)
        for name, value in plain.items():
            if name not in _OWN:
                self.send_header(name, value)
        self.send_header("Content-Length", told)
        self.end_headers()

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


_OWN = ("connection", "content-length", "expect", "transfer-encoding", "keep-alive")  # headers of one connection
