"""A small HTTP server on loopback that serves pictures, and every trouble that a URL of a corpus can bring."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler

from tests.support.corpora import jpeg, picture
from tests.support.loopback import LoopbackServer, running


class PictureServer(LoopbackServer):
    """What was asked for, how often, and by whom."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()


def served() -> contextlib.AbstractContextManager[PictureServer]:
    return running(PictureServer())


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer

    def do_GET(self) -> None:
        server, path = self.server, self.path
        with server.lock:
            server.asked[path] += 1
            server.agents.add(self.headers["User-Agent"])
            server.now += 1
            server.most = max(server.most, server.now)
            times = server.asked[path]
        try:
            self._answer(path.strip("/").split("/"), times)
        finally:
            with server.lock:
                server.now -= 1

    def _answer(self, words: list[str], times: int) -> None:
        data = jpeg(picture(int(words[1]) if len(words) > 1 and words[1].isdigit() else 0))
        kind = words[0]
        if kind == "status":
            self._send(int(words[1]), b"")
        elif kind == "flaky":  # sound from the third time on
            self._send(503 if times < 3 else 200, data, {"Retry-After": "0"})
        elif kind == "reset":
            if times == 1:
                self.connection.close()
            else:
                self._send(200, data)
        elif kind == "short":  # says that there is more than it sends
            self._send(200, data, {"Content-Length": str(len(data) + 9)})
            self.connection.close()
        elif kind == "robots":
            self._send(200, data, {"X-Robots-Tag": words[1].replace("_", " ")})
        elif kind == "to":
            self._send(302, b"", {"Location": {"file": "file:///etc/passwd"}.get(words[1], "/" + "/".join(words[1:]))})
        elif kind == "loop":
            self._send(302, b"", {"Location": self.path})
        elif kind == "large":
            self._send(200, b"\0" * 90_000, {"Content-Length": "90000"} if words[1:] else {"Connection": "close"})
        elif kind == "slow":
            time.sleep(float(words[1]))
            self._send(200, data)
        else:
            self._send(200, b"<html>" if kind == "page" else data)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            if not (name == "Content-Length" and "Connection" in (headers or {})):  # ends with the connection
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
