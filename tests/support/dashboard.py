"""A server that answers as Ray's dashboard does, for submitting jobs and following them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.loopback import LoopbackServer

GIB = 2.0**30


class Dashboard(LoopbackServer):
    """A token, a version, nodes; a job whose states are given, each for one question, the last one for ever.

    A state is Ray's answer, or a status of HTTP that is answered instead.
    """

    def __init__(
        self,
        version: str = "2.60.0",
        token: str = "right",
        states: Iterable[dict[str, object] | int] = (),
        output: str = "",
    ) -> None:
        super().__init__(_Handler)
        self.version, self.token, self.output = version, token, output
        self.nodes: list[dict[str, Any]] = [
            {"state": "ALIVE", "resources_total": {"CPU": 2.0, "memory": 4 * GIB}, "labels": {}}
        ]
        self.submitted: list[dict[str, object]] = []
        self.is_slow = False  # a submitted job is taken, and the answer never comes
        self.packages: dict[str, bytes] = {}
        self.asked: list[str] = []  # "GET /path"
        self._states: Iterator[dict[str, object] | int] = iter(states)
        self._state: dict[str, object] | int = 404

    def state(self) -> dict[str, object] | int:
        """The job's, at this question."""
        self._state = next(self._states, self._state)
        return self._state

    def logs(self) -> tuple[int, object]:
        """Status and answer of the question for the job's output."""
        return 200, {"logs": self.output}


class _Handler(BaseHTTPRequestHandler):
    server: Dashboard
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: object) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            status = 403 if self.headers.get("Authorization") else 401
            return self._answer(status, "Unauthorized: Missing authentication token")
        if self.path == "/api/version":
            return self._answer(200, {"version": "4", "ray_version": self.server.version})
        if self.path.startswith("/api/v0/nodes"):
            wanted = parse_qs(urlsplit(self.path).query).get("filter_values")
            nodes = [node for node in self.server.nodes if wanted is None or node.get("node_id") in wanted]
            return self._answer(200, {"data": {"result": {"result": nodes}}})
        if self.path.startswith("/nodes"):
            usage = {"1": "1.0/2.0 CPU\n0B/4.00GiB memory\n0B/1.00GiB object_store_memory"}
            return self._answer(200, {"data": {"nodeLogicalResources": usage}})
        if self.path.endswith("/logs"):
            return self._answer(*self.server.logs())
        if self.path.startswith("/api/jobs/") and not self.path.endswith("/tail"):
            state = self.server.state()
            return self._answer(*((state, "Traceback") if isinstance(state, int) else (200, state)))
        return self._answer(404, "no such thing")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.packages[self.path.rpartition("/")[2]] = body
        self._answer(200, "")

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        if self.path.endswith("/stop"):
            return self._answer(200, {"stopped": True})
        if any(body["submission_id"] == job["submission_id"] for job in self.server.submitted):
            return self._answer(400, "Traceback\n  ...\nValueError: Job with submission_id x already exists.")
        self.server.submitted.append(body)
        if self.server.is_slow:  # longer than anyone waits
            self.close_connection = True
            time.sleep(1.0)
            return None
        return self._answer(200, {"submission_id": body["submission_id"]})

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
