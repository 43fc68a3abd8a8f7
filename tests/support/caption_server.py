"""A small OpenAI-compatible server on loopback: it looks at the picture, and brings the troubles it is told to."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler
from typing import Any

from PIL import Image

from tests.support.loopback import LoopbackServer, running

MODEL, KEY = "tiny/captioner", "sk-right"


class CaptionServer(LoopbackServer):
    """`troubles`: what to do at a picture's first try, second ...; by its width, or by None for every one."""

    def __init__(self, troubles: dict[int | None, list[str]], key: str | None) -> None:
        super().__init__(_Handler)
        self.troubles, self.key = troubles, key
        self.bodies: list[dict[str, Any]] = []
        self.tries: Counter[int] = Counter()
        self.times: defaultdict[int, list[float]] = defaultdict(list)  # of tries, by width

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


def captioning(
    troubles: dict[int | None, list[str]] | None = None, key: str | None = None
) -> contextlib.AbstractContextManager[CaptionServer]:
    return running(CaptionServer(troubles or {}, key))


def caption_of(picture: Image.Image) -> str:
    """What the server sees in a picture: how wide it is, and whether it is rather red."""
    red, green, _ = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return f"a {'red' if red > green else 'green'} toy of {picture.width} pixels"


class _Handler(BaseHTTPRequestHandler):
    server: CaptionServer

    def do_GET(self) -> None:
        if self._allowed():
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if not self._allowed():
            return
        if body["model"] != MODEL:
            self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
        with server.lock:
            server.bodies.append(body)
            tries = server.tries[picture.width]
            server.tries[picture.width] += 1
            server.times[picture.width].append(time.monotonic())
            server.now += 1
            server.most = max(server.most, server.now)
        troubles = server.troubles.get(picture.width, server.troubles.get(None, []))
        try:
            self._answer(troubles[tries] if tries < len(troubles) else "", caption_of(picture))
        finally:
            with server.lock:
                server.now -= 1

    def _answer(self, trouble: str, caption: str) -> None:
        kind, _, value = trouble.partition(" ")
        if kind == "status":
            self._send(
                int(value), {"error": {"message": f"no, {self.headers.get('Authorization')}"}}, {"Retry-After": "0"}
            )
        elif kind == "wait":
            self._send(429, {}, {"Retry-After": value})
        elif kind == "slow":
            time.sleep(float(value))
            self._send(200, completion(caption))
        elif kind == "reset":
            self.connection.close()
        elif kind == "malformed":
            self._send(200, b'{"choices": [')
        elif kind == "other":
            self._send(200, {"choices": []})
        elif kind == "refusal":
            self._send(200, completion(None, refusal="not this one"))
        elif kind == "filter":
            self._send(200, completion("", finish_reason="content_filter"))
        elif kind == "cut":
            self._send(200, completion(value, finish_reason="length"))
        elif kind == "say":
            self._send(200, completion(value))
        else:
            self._send(200, completion(caption))

    def _allowed(self) -> bool:
        if self.server.key is None or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return True
        self._send(401, {"error": {"message": f"wrong: {self.headers.get('Authorization')}"}})
        return False

    def _send(self, status: int, answer: dict[str, Any] | bytes, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def completion(content: str | None, refusal: str | None = None, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
