"""A model hub on loopback: as much of its interface as its client needs to make a repository and commit files to it."""

from __future__ import annotations

import base64
import contextlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.loopback import LoopbackServer, running

TOKEN = "hf_right"


class Hub(LoopbackServer):
    """Repositories by name, and the files that were committed to each."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}


def hub() -> contextlib.AbstractContextManager[Hub]:
    return running(Hub())


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
            return
        self._send(200, self._answer(self.path.partition("?")[0].removeprefix("/api/").split("/"), body))

    def _answer(self, path: list[str], body: bytes) -> dict[str, Any]:
        if path == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            return {"url": f"{self.server.url}/{name}", "name": name, "id": "1"}
        if path == ["validate-yaml"]:
            return {"errors": [], "warnings": []}
        name, verb = "/".join(path[1:3]), path[3]
        if verb == "preupload":
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
        return {"commitUrl": f"{self.server.url}/{name}/commit/{40 * 'a'}", "commitOid": 40 * "a"}

    def do_GET(self) -> None:
        self._send(404, {"error": "not here"})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""
