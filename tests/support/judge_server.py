"""A judge that sees, on loopback: it looks at the generated picture, and brings the troubles that it is told to."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from PIL import Image

from tests.support.caption_server import completion
from tests.support.loopback import LoopbackServer, running

MODEL = "tiny/judge"
Shown = list[tuple[str, Image.Image]]  # title and picture, in the order in which they were shown


class JudgeServer(LoopbackServer):
    """`judge`: pictures as they are shown -> scores by name. `troubles`: what to do at the first tries of each question."""

    def __init__(self, judge: Callable[[Shown], dict[str, Any]], troubles: Sequence[str]) -> None:
        super().__init__(_Handler)
        self.judge, self.troubles = judge, list(troubles)
        self.bodies: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


def judging(
    judge: Callable[[Shown], dict[str, Any]], troubles: Sequence[str] = ()
) -> contextlib.AbstractContextManager[JudgeServer]:
    return running(JudgeServer(judge, troubles))


def shown_in(body: dict[str, Any]) -> Shown:
    content = body["messages"][1]["content"]
    titles = [part["text"] for part in content if part["type"] == "text"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    return list(zip(titles, pictures, strict=False))


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(data)
        with self.server.lock:
            self.server.bodies.append(body)
            question = json.dumps(body, sort_keys=True)
            number = self.server.tries[question]
            self.server.tries[question] += 1
        trouble = self.server.troubles[min(number, len(self.server.troubles) - 1)] if self.server.troubles else ""
        kind, _, value = trouble.partition(" ")
        if kind == "status":
            return self._send(int(value), b"{}")
        if kind == "slow":
            time.sleep(float(value))
        answer = json.dumps(self.server.judge(shown_in(body)))
        if kind == "broken":
            answer = answer[:-3]
        if kind == "chatty":
            answer = f"Let me look at the shape first.\n\nIts colours agree.\n{answer}"
        if kind == "after":
            answer = f"{answer}\nI hope that this helps!"
        if kind == "say":
            answer = value
        return self._send(200, json.dumps(completion(answer)).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
